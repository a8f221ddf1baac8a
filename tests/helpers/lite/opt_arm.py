"""Convert one model for arm: python opt_arm.py MODEL.pdmodel MODEL.pdiparams OUT_PREFIX.

Runs under Python 3.7 with paddlelite. Writes OUT_PREFIX.nb. Paddle-Lite aborts the process where
it cannot convert, so that the exit code tells.
"""

import sys

from paddlelite.lite import Opt


def main():
    model, params, out = sys.argv[1:]
    opt = Opt()
    opt.set_model_file(model)
    opt.set_param_file(params)
    opt.set_valid_places("arm")
    opt.set_model_type("naive_buffer")
    opt.set_optimize_out(out)
    opt.run()


if __name__ == "__main__":
    main()
