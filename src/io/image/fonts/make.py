"""The fonts of pictures: Noto Sans without what pictures do not need.

    pip install fonttools==4.68.0 fontpkg-noto-sans==2.15
    python src/io/image/fonts/make.py FOLDER

FOLDER has Noto's symbols, such as `/usr/share/fonts/truetype/noto` of Debian's package `fonts-noto-core` 20201225. Written
are the scripts that need no shaping and read from left to right, without hints, kerning and alternates. The licence is in
`OFL.txt`; it reserves no name.
"""

import sys
from pathlib import Path

import fontpkg_noto_sans
from fontTools.subset import Options, Subsetter
from fontTools.ttLib import TTFont
from fontTools.varLib.instancer import instantiateVariableFont

LETTERS = [
    (0x20, 0x7E),
    (0xA0, 0xAC),  # Without the soft hyphen.
    (0xAE, 0x34E),
    (0x350, 0x52F),
    (0x1D00, 0x1FFF),  # Phonetics; more Latin and Greek.
    (0x2010, 0x2027),  # Punctuation, without marks of direction.
    (0x2030, 0x205F),
    (0x2070, 0x20CF),  # Superscripts, subscripts, currencies.
    (0x2100, 0x22FF),  # Signs like letters; of operators, the few that it has.
    (0xFB00, 0xFB06),
    (0xFFFD, 0xFFFD),
]
ARROWS = [(0x2190, 0x22FF)]
SIGNS = [(0x2300, 0x27BF), (0x2B00, 0x2BFF)]
HERE = Path(__file__).parent


def write(name, font, ranges):
    """Writes the characters of some ranges of a font."""
    options = Options()
    options.layout_features = []
    options.hinting = False
    options.name_IDs = [0, 1, 2, 5, 13, 14]  # Whose it is, its names, its version, its licence.
    options.drop_tables += ["GDEF", "GPOS", "GSUB", "MATH", "STAT", "meta"]
    subsetter = Subsetter(options)
    subsetter.populate(unicodes=[code for low, high in ranges for code in range(low, high + 1)])
    subsetter.subset(font)
    out = HERE / f"{name}.ttf"
    font.save(out)
    print(f"{out.name}: {out.stat().st_size} bytes, {len(font.getBestCmap())} characters")


def main(folder):
    """Writes all of them beside this file."""
    variable = Path(fontpkg_noto_sans.__file__).parent / "files/NotoSans[wdth,wght].ttf"
    for style, weight in [("Regular", 400), ("Bold", 700)]:
        font = TTFont(variable, recalcTimestamp=False)
        font = instantiateVariableFont(font, {"wght": weight, "wdth": 100}, updateFontNames=True)
        write(f"NotoSans-{style}", font, LETTERS)
    for name, ranges in [("NotoSansMath-Regular", ARROWS), ("NotoSansSymbols2-Regular", SIGNS)]:
        write(name, TTFont(folder / f"{name}.ttf", recalcTimestamp=False), ranges)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
