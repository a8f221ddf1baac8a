"""Writes the table of operators into both pdmodel_from_pir pages: python docs/operator_table.py"""

from pathlib import Path

from paddleq.export.pir_to_program.operator_table import FAMILIES, ROWS
from paddleq.export.pir_to_program.special_operators import SPECIALS

DOCS = Path(__file__).resolve().parent
START, END = "<!-- operators: start -->\n", "<!-- operators: end -->\n"
COUNTS = "{} operators by a row of the table, {} by code."
HEAD = "family | number | operators in PIR → in the `.pdmodel`, where the name differs"

# Page -> translations of the words above and of the names of the families.
PAGES = {
    "pdmodel_from_pir.md": {},
    "pdmodel_from_pir.zh.md": {
        COUNTS: "{} 个算子由表中的一行转换，{} 个由代码转换。",
        HEAD: "类别 | 数量 | PIR 中的算子 → `.pdmodel` 中的算子（名字不同时）",
        "Activations": "激活函数",
        "Elementwise": "逐元素运算",
        "Matrices and embeddings": "矩阵与嵌入",
        "Convolutions, pooling, resampling": "卷积、池化、重采样",
        "Normalization": "归一化",
        "Reductions, sorting": "归约与排序",
        "Shapes": "形状",
        "Indices": "索引",
        "Constants and random numbers": "常量与随机数",
        "Sequences": "序列",
        "Detection": "检测",
        "Quantization": "量化",
        "By code": "由代码转换",
    },
}


def table(words):
    """The table, from the one that the converter uses."""
    def say(text):
        return words[text] if words else text

    rows = [say(COUNTS).format(len(ROWS), len(SPECIALS)), "", f"| {say(HEAD)} |", "|---|---|---|"]
    for family, members in FAMILIES.items():
        names = ", ".join(f"`{each.pir}`" if each.pir == each.legacy
                          else f"`{each.pir}` → `{each.legacy}`" for each in members)
        rows.append(f"| {say(family)} | {len(members)} | {names} |")
    rows.append(f"| {say('By code')} | {len(SPECIALS)} | "
                f"{', '.join(f'`{name}`' for name in SPECIALS)} |")
    return "\n".join(rows) + "\n"


def updated(page, words):
    """The text of the page with the table as it has to be."""
    before, rest = page.split(START)
    _, after = rest.split(END)
    return before + START + table(words) + END + after


if __name__ == "__main__":
    for name, words in PAGES.items():
        page = DOCS / name
        page.write_text(updated(page.read_text(encoding="utf-8"), words), encoding="utf-8")
