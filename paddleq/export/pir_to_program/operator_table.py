"""The operator table: PIR operation -> legacy operator.

Names, slots and types are those of Paddle's operator definitions and of the OpMakers of Paddle
2.6; tests compare every row with both definitions in the installed Paddle. The syntax of a row is
described in :mod:`.row_syntax`.
"""

from .row_syntax import row

_CONV = ("strides:ints paddings:ints padding_algorithm:str dilations:ints groups:int "
         "data_format:str")
_POOL = ("strides:ints paddings:ints ceil_mode:bool exclusive:bool data_format:str "
         "pooling_type:str global_pooling:bool adaptive:bool padding_algorithm:str")
_REDUCED = "in_dtype:int=-1 out_dtype:int=-1"
_BINARY = "x>X y>Y"
_SLICED = ("starts>starts:ints|StartsTensor|StartsTensorList "
           "ends>ends:ints|EndsTensor|EndsTensorList")
_ROIS = "x>X boxes>ROIs boxes_num>RoisNum?"
_ROIS_ATTRIBUTES = "pooled_height:int pooled_width:int spatial_scale:float"


def _alike(names, *slots, **more):
    """Rows that differ in their names only; each name is ``pir`` or ``pir:legacy``."""
    pairs = (name.split(":") for name in names.split())
    return [row(pair[0], pair[-1], *slots, **more) for pair in pairs]


FAMILIES = {
    "Activations": [
        *_alike("relu sigmoid tanh silu logsigmoid softsign tanh_shrink"),
        row("relu6", "relu6", added="threshold:float=6.0"),
        row("leaky_relu", "leaky_relu", attributes="negative_slope>alpha:float"),
        row("prelu", "prelu", "x>X alpha>Alpha", attributes="data_format:str mode:str"),
        *_alike("elu celu", attributes="alpha:float"),
        row("selu", "selu", attributes="scale:float alpha:float"),
        row("gelu", "gelu", attributes="approximate:bool"),
        row("mish", "mish", attributes="lambda>threshold:float"),
        row("swish", "swish", added="beta:float=1.0"),
        row("hardswish", "hard_swish",
            added="threshold:float=6.0 scale:float=6.0 offset:float=3.0"),
        row("hardsigmoid", "hard_sigmoid", attributes="slope:float offset:float"),
        row("hardtanh", "brelu", attributes="t_min:float t_max:float"),
        row("hardshrink", "hard_shrink", attributes="threshold:float"),
        row("softshrink", "softshrink", attributes="threshold>lambda:float"),
        row("softplus", "softplus", attributes="beta:float threshold:float"),
        row("stanh", "stanh", attributes="scale_a:float scale_b:float"),
        row("thresholded_relu", "thresholded_relu",
            attributes="threshold:float !value:float=0.0"),
        row("maxout", "maxout", attributes="groups:int axis:int"),
        row("logit", "logit", attributes="eps:float"),
        *_alike("softmax log_softmax", attributes="axis:int"),
    ],
    "Elementwise": [
        *_alike("abs acos acosh asin asinh atan atanh ceil cos cosh digamma erf erfinv exp expm1 "
                "floor lgamma log log10 log1p log2 reciprocal rsqrt sign sin sinh sqrt square tan "
                "bitwise_not logical_not"),
        row("trunc", "trunc", "input>X"),
        row("round", "round", attributes="!decimals:int=0"),
        *_alike("isfinite:isfinite_v2 isinf:isinf_v2 isnan:isnan_v2 assign share_data "
                "share_data_:share_data"),
        *_alike("add:elementwise_add subtract:elementwise_sub multiply:elementwise_mul "
                "divide:elementwise_div elementwise_pow maximum:elementwise_max "
                "minimum:elementwise_min remainder:elementwise_mod "
                "floor_divide:elementwise_floordiv", _BINARY, added="axis:int=-1"),
        *_alike("fmax:elementwise_fmax fmin:elementwise_fmin heaviside:elementwise_heaviside "
                "logical_and logical_or logical_xor bitwise_and bitwise_or bitwise_xor equal_all "
                "dot kron bmm", _BINARY),
        *_alike("less_than less_equal greater_than greater_equal equal not_equal", _BINARY,
                added="axis:int=-1 force_cpu:bool=false"),
        row("atan2", "atan2", "x>X1 y>X2"),
        row("cross", "cross", "x>X y>Y", attributes="axis>dim:int"),
        row("lerp", "lerp", "x>X y>Y weight>Weight"),
        row("mv", "mv", "x>X vec>Vec"),
        row("add_n", "sum", "inputs>X*"),
        row("scale", "scale", "x>X scale>scale:float|ScaleTensor",
            attributes="bias:float bias_after_scale:bool"),
        row("pow", "pow", attributes="y>factor:float"),
        row("where", "where", "condition>Condition x>X y>Y"),
        *_alike("memcpy_h2d:assign memcpy_d2h:assign", attributes="dst_place_type>-"),
        row("assign_out_", "assign", "x>X output>-", "out>Out=output"),
        row("increment", "increment", attributes="value>step:float"),
        row("increment_", "increment", outputs="out>Out=x", attributes="value>step:float"),
    ],
    "Matrices and embeddings": [
        row("matmul", "matmul_v2", "x>X y>Y",
            attributes="transpose_x>trans_x:bool transpose_y>trans_y:bool"),
        row("matmul_with_flatten", "mul", "x>X y>Y",
            attributes="x_num_col_dims:int y_num_col_dims:int"),
        row("addmm", "addmm", "input>Input x>X y>Y",
            attributes="beta>Beta:float alpha>Alpha:float"),
        row("einsum", "einsum", "x>Operands*", "out>Out inner_cache>InnerCache* xshape>XShape*",
            "equation:str"),
        row("embedding", "lookup_table_v2", "x>Ids weight>W",
            attributes="padding_idx:long sparse>-"),
        row("bilinear", "bilinear_tensor_product", "x>X y>Y weight>Weight bias>Bias?"),
        row("inverse", "inverse", "x>Input", "out>Output"),
        row("det", "determinant", "x>Input"),
        row("trace", "trace", "x>Input", attributes="offset:int axis1:int axis2:int"),
    ],
    "Convolutions, pooling, resampling": [
        *_alike("conv2d depthwise_conv2d conv3d", "input>Input filter>Filter", "out>Output", _CONV),
        *_alike("conv2d_transpose depthwise_conv2d_transpose",
                "x>Input filter>Filter output_size>output_size:ints", "out>Output",
                _CONV + " output_padding:ints"),
        row("conv3d_transpose", "conv3d_transpose", "x>Input filter>Filter", "out>Output",
            _CONV + " output_padding:ints output_size:ints"),
        row("pool2d", "pool2d", "x>X kernel_size>ksize:ints", attributes=_POOL,
            added="use_cudnn:bool=false"),
        row("pool3d", "pool3d", "x>X", attributes=_POOL + " kernel_size>ksize:ints",
            added="use_cudnn:bool=false"),
        *_alike("max_pool2d_with_index max_pool3d_with_index", outputs="out>Out mask>Mask",
                attributes="kernel_size>ksize:ints strides:ints paddings:ints global_pooling:bool "
                           "adaptive:bool !ceil_mode:bool=false"),
        row("unpool", "unpool", "x>X indices>Indices output_size>output_size:ints",
            attributes="ksize:ints strides:ints padding>paddings:ints data_format:str",
            added="unpooling_type:str=max"),
        row("unfold", "unfold", outputs="out>Y",
            attributes="kernel_sizes:ints strides:ints paddings:ints dilations:ints"),
        row("fold", "fold", outputs="out>Y",
            attributes="output_sizes:ints kernel_sizes:ints strides:ints paddings:ints "
                       "dilations:ints"),
        *(row(f"{kind}_interp", f"{kind}_interp_v2",
              "x>X out_size>OutSize? size_tensor>SizeTensor*? scale_tensor>Scale?", "output>Out",
              "data_format>data_layout:str out_d:int out_h:int out_w:int scale:floats "
              "interp_method:str align_corners:bool align_mode:int")
          for kind in ("bilinear", "nearest", "bicubic", "linear", "trilinear")),
        row("pixel_shuffle", "pixel_shuffle", attributes="upscale_factor:int data_format:str"),
        row("pixel_unshuffle", "pixel_unshuffle",
            attributes="downscale_factor:int data_format:str"),
        row("channel_shuffle", "channel_shuffle", attributes="groups:int data_format:str"),
        row("shuffle_channel", "shuffle_channel", attributes="group:int"),
        row("temporal_shift", "temporal_shift",
            attributes="seg_num:int shift_ratio:float data_format:str"),
        row("affine_grid", "affine_grid", "input>Theta output_shape>output_shape:ints|OutputShape",
            "output>Output", "align_corners:bool"),
        row("grid_sample", "grid_sampler", "x>X grid>Grid", "out>Output",
            "mode:str padding_mode:str align_corners:bool"),
    ],
    "Normalization": [
        *(row(name, "batch_norm", "x>X mean>Mean variance>Variance scale>Scale? bias>Bias?",
              "out>Y mean_out>MeanOut=mean variance_out>VarianceOut=variance "
              "saved_mean>SavedMean saved_variance>SavedVariance reserve_space>-",
              "is_test:bool momentum:float epsilon:float data_format>data_layout:str "
              "use_global_stats:bool trainable_statistics:bool")
          for name in ("batch_norm", "batch_norm_")),
        row("layer_norm", "layer_norm", "x>X scale>Scale? bias>Bias?",
            "out>Y mean>Mean variance>Variance", "epsilon:float begin_norm_axis:int"),
        row("group_norm", "group_norm", "x>X scale>Scale? bias>Bias?",
            "y>Y mean>Mean variance>Variance",
            "epsilon:float groups:int data_format>data_layout:str"),
        row("instance_norm", "instance_norm", "x>X scale>Scale? bias>Bias?",
            "y>Y saved_mean>SavedMean saved_variance>SavedVariance", "epsilon:float"),
        row("norm", "norm", outputs="out>Out norm>Norm",
            attributes="axis:int epsilon:float is_test:bool"),
        row("p_norm", "p_norm",
            attributes="porder:float axis:int epsilon:float keepdim:bool asvector:bool"),
        row("frobenius_norm", "frobenius_norm", "x>X axis>dim:ints",
            attributes="keep_dim:bool reduce_all:bool", added=_REDUCED),
        row("squared_l2_norm", "squared_l2_norm"),
        row("spectral_norm", "spectral_norm", "weight>Weight u>U v>V",
            attributes="dim:int power_iters:int eps:float"),
        row("dropout", "dropout", "x>X seed_tensor>Seed? p>dropout_prob:float", "out>Out mask>Mask",
            "is_test:bool mode>dropout_implementation:str seed:int fix_seed:bool"),
        row("label_smooth", "label_smooth", "label>X prior_dist>PriorDist?",
            attributes="epsilon:float"),
        row("fused_softmax_mask", "fused_softmax_mask", "x>X mask>Mask"),
    ],
    "Reductions, sorting": [
        *(row(name, f"reduce_{name}", "x>X axis>dim:ints", attributes="keepdim>keep_dim:bool",
              added=_REDUCED) for name in ("mean", "max", "min")),
        row("sum", "reduce_sum", "x>X axis>dim:ints", attributes="keepdim>keep_dim:bool "
            "dtype>out_dtype:dtype", added="in_dtype:int=-1"),
        row("prod", "reduce_prod", "x>X axis>dim:ints",
            attributes="keepdim>keep_dim:bool reduce_all:bool", added=_REDUCED),
        *(row(name, f"reduce_{name}", attributes="axis>dim:longs keepdim>keep_dim:bool",
              added=_REDUCED) for name in ("all", "any", "amax", "amin")),
        row("mean_all", "mean"),
        row("logsumexp", "logsumexp", attributes="axis:ints keepdim:bool reduce_all:bool"),
        *(row(f"arg{kind}", f"arg_{kind}", "x>X axis>axis:long",
              attributes="keepdims:bool flatten:bool dtype:dtype") for kind in ("max", "min")),
        row("cumsum", "cumsum", "x>X axis>axis:int",
            attributes="flatten:bool exclusive:bool reverse:bool"),
        row("logcumsumexp", "logcumsumexp",
            attributes="axis:int flatten:bool exclusive:bool reverse:bool"),
        row("cumprod", "cumprod",
            attributes="dim:int !exclusive:bool=false !reverse:bool=false"),
        row("numel", "size", "x>Input", "size>Out"),
        row("bincount", "bincount", "x>X weights>Weights? minlength>minlength:int"),
        row("topk", "top_k_v2", "x>X k>k:int|K", "out>Out indices>Indices",
            "axis:int largest:bool sorted:bool"),
        row("argsort", "argsort", outputs="out>Out indices>Indices",
            attributes="axis:int descending:bool !stable:bool=false"),
        row("kthvalue", "kthvalue", outputs="out>Out indices>Indices",
            attributes="k:int axis:int keepdim:bool"),
        row("mode", "mode", outputs="out>Out indices>Indices", attributes="axis:int keepdim:bool"),
        row("unique", "unique",
            outputs="out>Out indices>Indices inverse>Index counts>Counts",
            attributes="return_index:bool return_inverse:bool return_counts:bool axis:ints "
                       "dtype:dtype is_sorted:bool"),
        row("searchsorted", "searchsorted", "sorted_sequence>SortedSequence values>Values",
            attributes="out_int32:bool right:bool"),
    ],
    "Shapes": [
        row("reshape", "reshape2", "x>X shape>shape:ints|Shape|ShapeTensor", "out>Out >XShape"),
        row("transpose", "transpose2", attributes="perm>axis:ints"),
        row("squeeze", "squeeze2", "x>X axis>axes:ints"),
        row("unsqueeze", "unsqueeze2", "x>X axis>axes:ints|AxesTensor|AxesTensorList"),
        row("flatten", "flatten_contiguous_range",
            attributes="start_axis:int stop_axis:int"),
        row("shape", "shape", "input>Input"),
        row("concat", "concat", "x>X* axis>axis:int|AxisTensor"),
        row("split", "split", "x>X sections>sections:ints|-|SectionsTensorList "
            "axis>axis:int|AxisTensor", "out>Out*", added="num:int=0"),
        row("split_with_num", "split", "x>X axis>axis:int|AxisTensor", "out>Out*",
            "num:int", added="sections:ints="),
        row("unbind", "unbind", "input>X", "out>Out*", "axis:int"),
        row("unstack", "unstack", outputs="out>Y*", attributes="axis:int num:int"),
        row("meshgrid", "meshgrid", "inputs>X*", "out>Out*"),
        row("slice", "slice", f"input>Input {_SLICED}",
            attributes="axes:ints infer_flags:ints decrease_axis:ints"),
        row("strided_slice", "strided_slice",
            f"x>Input {_SLICED} strides>strides:ints|StridesTensor|StridesTensorList",
            attributes="axes:ints", added="decrease_axis:ints="),
        row("crop", "crop_tensor", "x>X shape>shape:ints|Shape|ShapeTensor "
            "offsets>offsets:ints|Offsets|OffsetsTensor"),
        row("tile", "tile", "x>X repeat_times>repeat_times:ints|RepeatTimes|repeat_times_tensor"),
        row("expand", "expand_v2", "x>X shape>shape:ints|Shape|expand_shapes_tensor"),
        row("expand_as", "expand_as_v2", "x>X y>Y?", attributes="target_shape:ints"),
        row("pad", "pad", "x>X pad_value>pad_value:float", attributes="paddings:ints"),
        row("pad3d", "pad3d", "x>X paddings>paddings:ints|Paddings",
            attributes="mode:str pad_value>value:float data_format:str"),
        row("flip", "flip", attributes="axis:ints"),
        row("roll", "roll", "x>X shifts>shifts:longs|ShiftsTensor", attributes="axis:longs"),
        row("repeat_interleave", "repeat_interleave",
            attributes="repeats>Repeats:int axis>dim:int !output_size:long=-1"),
        row("repeat_interleave_with_tensor_index", "repeat_interleave",
            "x>X repeats>RepeatsTensor",
            attributes="axis>dim:int !output_size:long=-1", added="Repeats:int=0"),
        row("diag", "diag_v2", attributes="offset:int padding_value:float"),
        row("diag_embed", "diag_embed", "input>Input", attributes="offset:int dim1:int dim2:int"),
        row("diagonal", "diagonal", "x>Input", attributes="offset:int axis1:int axis2:int"),
        *(row(name, "tril_triu", attributes="diagonal:int", added=f"lower:bool={lower}")
          for name, lower in (("tril", "true"), ("triu", "false"))),
    ],
    "Indices": [
        row("gather", "gather", "x>X index>Index axis>axis:int|Axis"),
        row("gather_nd", "gather_nd", "x>X index>Index"),
        row("index_select", "index_select", "x>X index>Index", attributes="axis>dim:int"),
        row("index_sample", "index_sample", "x>X index>Index"),
        row("index_add", "index_add", "x>X index>Index add_value>AddValue", attributes="axis:int"),
        row("index_put", "index_put", "x>x indices>indices* value>value", "out>out",
            "accumulate:bool"),
        row("take_along_axis", "take_along_axis", "arr>Input indices>Index", "out>Result",
            "axis>Axis:int"),
        row("put_along_axis", "put_along_axis", "arr>Input indices>Index values>Value",
            "out>Result", "axis>Axis:int reduce>Reduce:str include_self>Include_self:bool"),
        row("scatter", "scatter", "x>X index>Ids updates>Updates", attributes="overwrite:bool"),
        row("scatter_nd_add", "scatter_nd_add", "x>X index>Index updates>Updates"),
        row("masked_select", "masked_select", "x>X mask>Mask", "out>Y"),
        row("nonzero", "where_index", "condition>Condition"),
        row("one_hot", "one_hot_v2", "x>X num_classes>depth:int|depth_tensor",
            added="dtype:int=5 allow_out_of_range:bool=false"),
        row("sequence_mask", "sequence_mask", "x>X max_len>maxlen:int|MaxLenTensor", "y>Y",
            "out_dtype:dtype"),
        row("shard_index", "shard_index", "input>X",
            attributes="index_num:int nshards:int shard_id:int ignore_value:int"),
    ],
    "Constants and random numbers": [
        row("full_batch_size_like", "fill_constant_batch_size_like", "input>Input",
            attributes="shape:ints dtype:dtype value:float input_dim_idx:int output_dim_idx:int",
            added="str_value:str= force_cpu:bool=false"),
        row("empty", "empty", "shape>shape:longs|ShapeTensor|ShapeTensorList",
            attributes="dtype:dtype"),
        row("gaussian", "gaussian_random", "shape>shape:longs|ShapeTensor|ShapeTensorList",
            attributes="mean:float std:float seed:int dtype:dtype"),
        row("uniform", "uniform_random",
            "shape>shape:longs|ShapeTensor|ShapeTensorList min>min:float max>max:float",
            attributes="seed:int dtype:dtype",
            added="diag_num:int=0 diag_step:int=0 diag_val:float=1.0"),
        row("randint", "randint", "shape>shape:longs|ShapeTensor|ShapeTensorList",
            attributes="low:int high:int dtype:dtype", added="seed:int=0"),
        row("linspace", "linspace", "start>Start stop>Stop number>Num", attributes="dtype:dtype"),
        row("eye", "eye", "num_rows>num_rows:long num_columns>num_columns:long",
            attributes="dtype:dtype"),
    ],
    "Sequences": [
        row("rnn", "rnn", "x>Input pre_state>PreState* weight_list>WeightList* "
            "sequence_length>SequenceLength? dropout_state_in>-?",
            "out>Out dropout_state_out>DropoutState state>State* reserve>Reserve",
            "dropout_prob:float is_bidirec:bool input_size:int hidden_size:int num_layers:int "
            "mode:str seed:int is_test:bool"),
        row("ctc_align", "ctc_align", "input>Input input_length>InputLength?",
            "output>Output output_length>OutputLength",
            "blank:int merge_repeated:bool padding_value:int"),
        row("viterbi_decode", "viterbi_decode",
            "potentials>Input transition_params>Transition lengths>Length",
            "scores>Scores path>Path", "include_bos_eos_tag:bool"),
        row("gather_tree", "gather_tree", "ids>Ids parents>Parents"),
    ],
    "Detection": [
        row("nms", "nms", "x>Boxes", "out>KeepBoxesIdxs", "threshold>iou_threshold:float"),
        row("multiclass_nms3", "multiclass_nms3", "bboxes>BBoxes scores>Scores rois_num>RoisNum?",
            "out>Out index>Index nms_rois_num>NmsRoisNum",
            "score_threshold:float nms_top_k:int keep_top_k:int nms_threshold:float "
            "normalized:bool nms_eta:float background_label:int"),
        row("matrix_nms", "matrix_nms", "bboxes>BBoxes scores>Scores",
            "out>Out index>Index roisnum>RoisNum",
            "score_threshold:float nms_top_k:int keep_top_k:int post_threshold:float "
            "use_gaussian:bool gaussian_sigma:float background_label:int normalized:bool"),
        row("yolo_box", "yolo_box", "x>X img_size>ImgSize", "boxes>Boxes scores>Scores",
            "anchors:ints class_num:int conf_thresh:float downsample_ratio:int clip_bbox:bool "
            "scale_x_y:float iou_aware:bool iou_aware_factor:float"),
        row("prior_box", "prior_box", "input>Input image>Image", "out>Boxes var>Variances",
            "min_sizes:floats max_sizes:floats aspect_ratios:floats variances:floats flip:bool "
            "clip:bool step_w:float step_h:float offset:float min_max_aspect_ratios_order:bool"),
        row("box_coder", "box_coder",
            "prior_box>PriorBox prior_box_var>PriorBoxVar? target_box>TargetBox",
            "output_box>OutputBox",
            "code_type:str box_normalized:bool axis:int variance:floats"),
        row("generate_proposals", "generate_proposals_v2",
            "scores>Scores bbox_deltas>BboxDeltas im_shape>ImShape anchors>Anchors "
            "variances>Variances",
            "rpn_rois>RpnRois rpn_roi_probs>RpnRoiProbs rpn_rois_num>RpnRoisNum",
            "pre_nms_top_n>pre_nms_topN:int post_nms_top_n>post_nms_topN:int nms_thresh:float "
            "min_size:float eta:float pixel_offset:bool"),
        row("distribute_fpn_proposals", "distribute_fpn_proposals",
            "fpn_rois>FpnRois rois_num>RoisNum?",
            "multi_fpn_rois>MultiFpnRois* multi_level_rois_num>MultiLevelRoIsNum* "
            "restore_index>RestoreIndex",
            "min_level:int max_level:int refer_level:int refer_scale:int pixel_offset:bool"),
        row("roi_align", "roi_align", _ROIS,
            attributes=_ROIS_ATTRIBUTES + " sampling_ratio:int aligned:bool"),
        row("roi_pool", "roi_pool", _ROIS, "out>Out arg_max>Argmax", _ROIS_ATTRIBUTES),
        row("psroi_pool", "psroi_pool", _ROIS,
            attributes=_ROIS_ATTRIBUTES + " output_channels:int"),
    ],
    "Quantization": [
        *_alike("quantize_linear dequantize_linear",
                "x>X scale>Scale zero_point>ZeroPoint in_accum>InAccum? in_state>InState?",
                "y>Y out_state>OutState out_accum>OutAccum out_scale>OutScale",
                "quant_axis:int bit_length:int qmin:int=-128 qmax:int=127 round_type:int "
                "is_test:bool only_observer:bool"),
        *_alike("fake_quantize_dequantize_moving_average_abs_max",
                "x>X in_scale>InScale in_accum>-? in_state>-?",
                "out>Out out_scale>OutScale=in_scale out_state>- out_accum>-",
                "moving_rate:float bit_length:int is_test:bool round_type:int"),
    ],
}

ROWS = {each.pir: each for rows in FAMILIES.values() for each in rows}
