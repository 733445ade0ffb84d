"""Names of licences: which SPDX identifiers we know, which are permissive, and the other spellings of each.

Spellings come from package metadata, classifiers, dataset cards and licence files that we met.
"""

OWN = "own"  # private text of the user: allowed, and kept out of cards

# No condition beyond naming the authors; what The Stack (arXiv 2211.15533) calls permissive, read more strictly.
PERMISSIVE = tuple(
    """
    0BSD AFL-3.0 Apache-1.1 Apache-2.0 Artistic-2.0 BSD-1-Clause BSD-2-Clause BSD-3-Clause BSD-3-Clause-Clear
    BSL-1.0 BlueOak-1.0.0 CC-BY-3.0 CC-BY-4.0 CC0-1.0 CDLA-Permissive-1.0 CDLA-Permissive-2.0 CNRI-Python ECL-2.0
    FSFAP HPND ISC MIT MIT-0 MIT-CMU MS-PL MulanPSL-2.0 NCSA ODC-By-1.0 PDDL-1.0 PSF-2.0 PostgreSQL Python-2.0 TCL
    UPL-1.0 Unicode-3.0 Unicode-DFS-2016 Unlicense W3C WTFPL X11 ZPL-2.0 ZPL-2.1 Zlib bzip2-1.0.6 curl libpng-2.0
    """.split()
)

# Known, so that a text is refused as `not_allowed` and not as `unknown`; name one in `allow` to accept it.
OTHERS = tuple(
    """
    GPL-1.0-only GPL-1.0-or-later GPL-2.0-only GPL-2.0-or-later GPL-3.0-only GPL-3.0-or-later LGPL-2.0-only
    LGPL-2.0-or-later LGPL-2.1-only LGPL-2.1-or-later LGPL-3.0-only LGPL-3.0-or-later AGPL-1.0-only
    AGPL-1.0-or-later AGPL-3.0-only AGPL-3.0-or-later GFDL-1.1-only GFDL-1.1-or-later GFDL-1.2-only GFDL-1.2-or-later
    GFDL-1.3-only GFDL-1.3-or-later MPL-1.0 MPL-1.1 MPL-2.0 EPL-1.0 EPL-2.0 EUPL-1.0 EUPL-1.1 EUPL-1.2 CDDL-1.0
    CDDL-1.1 CPL-1.0 OSL-3.0 QPL-1.0 Artistic-1.0 BSD-4-Clause CECILL-2.1 CDLA-Sharing-1.0 C-UDA-1.0 ODbL-1.0
    OFL-1.1 etalab-2.0 SSPL-1.0 BUSL-1.1 Elastic-2.0 Sleepycat NASA-1.3
    """.split()
)
CREATIVE_COMMONS = tuple(
    f"CC-{terms}-{version}"
    for terms in ("BY", "BY-SA", "BY-NC", "BY-ND", "BY-NC-SA", "BY-NC-ND")
    for version in ("1.0", "2.0", "2.5", "3.0", "4.0")
)

IDENTIFIERS = {name.lower(): name for name in (*PERMISSIVE, *OTHERS, *CREATIVE_COMMONS, OWN)}

# SPDX identifier -> spellings in lower case. "BSD" without a number is the three-clause text in every package looked
# at; a family without a version is its usual latest.
_SPELLINGS: dict[str, tuple[str, ...]] = {
    "0BSD": ("zero-clause bsd (0bsd)",),
    "AFL-3.0": ("academic free license (afl)",),
    "AGPL-3.0-only": (
        "agpl-3.0",
        "agplv3",
        "gnu affero general public license v3",
        "gnu affero general public license v3 (agplv3)",
    ),
    "AGPL-3.0-or-later": ("agpl", "agplv3+", "gnu affero general public license v3 or later (agplv3+)"),
    "Apache-2.0": (
        "al2",
        "apache",
        "apache 2",
        "apache 2.0",
        "apache 2.0 license",
        "apache license",
        "apache license 2",
        "apache license 2.0",
        "apache license v2",
        "apache license v2.0",
        "apache license version 2.0",
        "apache license, version 2.0",
        "apache software license",
        "apache software license 2.0",
        "apache software license version 2.0",
        "apache v2",
        "apache version 2.0",
        "apache-2",
        "apache-license-2.0",
        "apache2",
        "apache2.0",
        "asl 2.0",
        "license-2.0",
    ),
    "Artistic-2.0": ("artistic", "artistic license", "artistic license 2.0"),
    "BlueOak-1.0.0": ("blue oak model license",),
    "BSD-2-Clause": (
        "2-clause bsd",
        "2-clause bsd license",
        "bsd 2 clause",
        "bsd 2-clause",
        "bsd 2-clause license",
        "bsd two-clause",
        "bsd-2",
        "bsd2",
        "freebsd",
        "simplified bsd",
    ),
    "BSD-3-Clause": (
        "3-clause bsd",
        "3-clause bsd license",
        "bsd",
        "bsd 3",
        "bsd 3 clause",
        "bsd 3-clause",
        "bsd 3-clause license",
        "bsd license",
        "bsd style",
        "bsd three-clause",
        "bsd-3",
        "bsd-license",
        "bsd-style",
        "bsd3",
        "modified bsd",
        "modified bsd license",
        "new bsd",
        "new bsd license",
        "revised bsd",
    ),
    "BSD-3-Clause-Clear": ("clear bsd",),
    "BSL-1.0": (
        "boost",
        "boost software license",
        "boost software license - version 1.0",
        "boost software license 1.0",
        "boost software license 1.0 (bsl-1.0)",
    ),
    "CC-BY-4.0": ("cc-by", "creative commons attribution"),
    "CC-BY-NC-4.0": ("cc-by-nc",),
    "CC-BY-NC-ND-4.0": ("cc-by-nc-nd",),
    "CC-BY-NC-SA-4.0": ("cc-by-nc-sa",),
    "CC-BY-ND-4.0": ("cc-by-nd",),
    "CC-BY-SA-4.0": ("cc-by-sa",),
    "CC0-1.0": (
        "cc-zero",
        "cc0",
        "cc0 1.0 universal",
        "cc0 1.0 universal (cc0 1.0) public domain dedication",
        "creative commons zero",
        "creative commons zero v1.0 universal",
    ),
    "CDDL-1.0": ("cddl", "common development and distribution license 1.0 (cddl-1.0)"),
    "CNRI-Python": ("python license (cnri python license)",),
    "ECL-2.0": ("educational community license, version 2.0 (ecl-2.0)",),
    "EPL-1.0": ("eclipse public license 1.0 (epl-1.0)",),
    "EPL-2.0": ("eclipse public license 2.0 (epl-2.0)", "epl"),
    "etalab-2.0": ("etalab open license 2.0",),
    "EUPL-1.0": ("european union public licence 1.0 (eupl 1.0)",),
    "EUPL-1.1": ("european union public licence 1.1 (eupl 1.1)",),
    "EUPL-1.2": ("eupl", "european union public licence 1.2", "european union public licence 1.2 (eupl 1.2)"),
    "GFDL-1.3-or-later": ("gfdl", "gnu free documentation license (fdl)"),
    "GPL-2.0-only": ("gnu general public license v2 (gplv2)", "gpl v2", "gplv2"),
    "GPL-2.0-or-later": ("gnu general public license v2 or later (gplv2+)", "gplv2+"),
    "GPL-3.0-only": ("gnu general public license v3 (gplv3)", "gnu gpl v3", "gpl v3", "gplv3"),
    "GPL-3.0-or-later": (
        "gnu general public license",
        "gnu general public license (gpl)",
        "gnu general public license v3 or later (gplv3+)",
        "gnu gpl",
        "gpl",
        "gplv3+",
    ),
    "HPND": ("historical permission notice and disclaimer (hpnd)",),
    "ISC": ("isc license", "isc license (iscl)", "iscl"),
    "LGPL-2.0-only": ("gnu lesser general public license v2 (lgplv2)",),
    "LGPL-2.1-only": ("lgplv2.1",),
    "LGPL-2.1-or-later": (
        "gnu lesser general public license",
        "gnu lesser general public license v2 or later (lgplv2+)",
        "gnu lgpl",
        "gnu library or lesser general public license (lgpl)",
        "lgpl",
        "lgplv2+",
    ),
    "LGPL-3.0-only": ("gnu lesser general public license v3 (lgplv3)", "lgplv3"),
    "LGPL-3.0-or-later": ("gnu lesser general public license v3 or later (lgplv3+)", "lgplv3+"),
    "MIT": (
        "expat",
        "mit licence",
        "mit license",
        "mit license (mit)",
        "mit-license",
        "the mit license",
        "the mit license (mit)",
    ),
    "MIT-0": ("mit no attribution license (mit-0)",),
    "MIT-CMU": ("cmu license (mit-cmu)", "mit-cmu license"),
    "MPL-1.1": ("mozilla public license 1.1 (mpl 1.1)",),
    "MPL-2.0": (
        "mozilla public license",
        "mozilla public license 2.0",
        "mozilla public license 2.0 (mpl 2.0)",
        "mpl",
        "mpl 2.0",
        "mpl v2",
        "mpl2",
        "mplv2",
    ),
    "MS-PL": ("microsoft public license",),
    "MulanPSL-2.0": ("mulan permissive software license v2", "mulan permissive software license v2 (mulanpsl-2.0)"),
    "NCSA": ("university of illinois/ncsa open source license",),
    "ODbL-1.0": ("odbl", "open database license"),
    "ODC-By-1.0": ("odc by 1.0", "odc-by"),
    "OFL-1.1": ("open font license", "sil open font license", "sil open font license 1.1 (ofl-1.1)"),
    "PDDL-1.0": ("pddl",),
    "PostgreSQL": ("postgresql license",),
    "PSF-2.0": (
        "psf",
        "psf license",
        "psfl",
        "python",
        "python software foundation license",
        "python software foundation license version 2",
    ),
    "Unlicense": ("public domain", "the unlicense", "the unlicense (unlicense)"),
    "UPL-1.0": ("universal permissive license (upl)",),
    "W3C": ("w3c license",),
    "WTFPL": ("do what the fuck you want to public license",),
    "X11": ("x11 license",),
    "Zlib": ("zlib license", "zlib/libpng license"),
    "ZPL-2.1": ("zope public license", "zpl 2.1"),
}
SPELLINGS = {spelling: name for name, spellings in _SPELLINGS.items() for spelling in spellings}
