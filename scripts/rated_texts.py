"""Finds the texts that raters read for the quality scorer, makes the ones that are to fool it, and collects the ratings.

    python scripts/rated_texts.py draw FOLDER         # downloads packages, draws documents: FOLDER/documents.jsonl
    python scripts/rated_texts.py find FOLDER         # the texts of the shipped labels again, each checked by its hash
    python scripts/rated_texts.py batches FOLDER      # what raters read: batches/, second/, and the key to their ids
    python scripts/rated_texts.py collect FOLDER      # ratings/*.tsv of raters -> the shipped labels

A document is a piece of a file of a package, at most as long as what the scorer reads. Labels name it by package,
version, path and first character, and hold a hash of its text, not the text: many licences do not allow that.
Packages come through apt-get (with deb-src and non-free lines of its own, nothing of the system changes), npm and pip.
Debian keeps old versions at snapshot.debian.org. Texts made to fool are made from drawn ones by seeds (`fooling.py`).
"""

import argparse
import fcntl
import gzip
import hashlib
import io
import json
import os
import random
import re
import subprocess
import sys
import tarfile
import zipfile
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from data_filters.rule import CODE, PROSE
from pipeline.corpus.scorers.fooling import KINDS
from pipeline.corpus.scorers.fooling import make as fool
from pipeline.corpus.scorers.labels import find_documents, read_labels
from pipeline.corpus.sources.document_files import PLAIN_ENDINGS, notebook_text
from pipeline.corpus.sources.document_text import decode_code, decode_page, decode_text, main_text
from pipeline.corpus.text.user_files import Unreadable

CHARACTERS = 8_000  # of a document: what the scorer reads
LEAST_CHARACTERS, MOST_OF_A_PACKAGE = 250, 12
SHOWN_HEAD, SHOWN_MIDDLE, BATCH_DOCUMENTS = 1_600, 800, 40
MAX_FILE_BYTES = 3_000_000
RATED_OF_A_KIND, RATED_BEFORE = 7, 60  # of texts to fool, and of the labels there were: raters do not know which
SEED = 21

# domain: (documents, {package: which of its files}). Packages are named as `deb:`, `src:` (Debian source), `npm:`, `pypi:`.
_TEXT = r"\.(txt|md|rst|adoc|texi|pod|html?)(\.gz)?$"
PLAN: dict[str, tuple[int, dict[str, str]]] = {
    "manual": (100, {
        "deb:git-doc": r"html/(user-manual|giteveryday|gitworkflows|gitcli|githooks|gitsubmodules|gitattributes)\.txt$",
        "deb:postgresql-doc-15": r"html/(?!sql-|app-|catalog-|view-|release)[a-z-]+\.html$",
        "deb:bash-doc": r"\.html?$", "deb:haproxy-doc": r"\.txt(\.gz)?$|\.html$",
        "deb:apache2-doc": r"manual/en/(?!mod/)[\w/-]+\.html$", "deb:exim4-doc-html": r"ch-?\w*\.html$|\.html$",
        "deb:postfix-doc": r"README\.html$|_README(\.gz)?$", "deb:ffmpeg-doc": r"manual/[\w-]+\.html$",
        "deb:valgrind": r"html/[\w-]*manual[\w.-]*\.html$", "deb:autoconf-doc": r"\.html$|\.texi",
        "deb:octave-doc": r"octave\.html/[A-Z][\w-]+\.html$", "deb:zsh-doc": r"\.html$",
        "deb:gnuplot-doc": r"\.html$", "deb:developers-reference": r"en/[\w.-]+\.html$|reference/[\w-]+\.html$",
    }),
    "textbook": (100, {
        "deb:debian-handbook": r"html/en-US/(sect|chap)[\w.-]+\.html$|en-US/[\w.-]+\.html$", "deb:abs-guide": r"\.html$",
        "deb:rust-doc": r"html/(book|nomicon)/[\w-]+\.html$", "deb:r-doc-html": r"manual/R-(intro|lang|exts|data)\.html$",
        "deb:debian-reference-en": r"ch\d+\.en\.html$", "deb:ocaml-doc": r"\.html$",
        "deb:haskell98-report": r"\.html$", "deb:linux-doc-6.1": r"html/(RCU|locking|mm|filesystems|scheduler|process)/[\w-]+\.html$",
        "deb:scheme48-doc": r"\.html$", "deb:jargon-text": r"\.txt(\.gz)?$", "deb:anarchism": r"\.(html|txt)(\.gz)?$",
        "deb:racket-doc": r"(guide|reference|quick|more|continue)/[\w-]+\.html$", "deb:python-sympy-doc": r"explanation/[\w-]+\.html$|modules/[\w/-]+\.html$",
        "deb:debian-kernel-handbook": r"\.html$",
    }),
    "tutorial": (100, {
        "deb:python3.11-doc": r"html/(tutorial|howto)/[\w-]+\.html$", "deb:perl-doc": r"/perl(\w*(tut|intro|style|quick|requick|faq\d))\.pod$",
        "deb:rust-doc": r"rust-by-example/[\w/-]+\.html$", "deb:python-django-doc": r"(intro|howto|topics)/[\w-]+\.(html|txt)(\.gz)?$",
        "deb:vim-doc": r"doc/usr_\d+\.(txt|html)(\.gz)?$", "deb:python-sklearn-doc": r"(tutorial|auto_examples)/[\w/-]+\.html$",
        "deb:python-flask-doc": r"(tutorial|patterns)/[\w-]+\.html$", "deb:python-pandas-doc": r"(getting_started|user_guide)/[\w/-]+\.html$",
        "deb:git-doc": r"(gittutorial|gittutorial-2|gitcore-tutorial|giteveryday|MyFirst\w+)\.txt$", "deb:maint-guide": r"html/\w+\.en\.html$|en/[\w.-]+\.html$",
        "deb:cython-doc": r"(tutorial|userguide|quickstart)/[\w-]+\.html$", "deb:python-scipy-doc": r"tutorial/[\w/-]+\.html$",
        "deb:gap-doc": r"doc/tut/[\w-]+\.(html|txt)(\.gz)?$", "src:networkx": r"examples/[\w/]+\.py$|doc/[\w/]+\.rst$",
        "src:emcee": r"docs/.*\.(rst|ipynb)$",
    }),
    "reference": (90, {
        "deb:python3.11-doc": r"html/library/[\w.]+\.html$", "deb:nodejs-doc": r"api/\w+\.html$",
        "deb:cmake-doc": r"html/(command|manual|module)/[\w.-]+\.html$", "deb:perl-doc": r"/perl(func|op|re|var|api|port|ipc|mod|sub|data|diag|uniprops)\.pod$",
        "deb:postgresql-doc-15": r"html/(sql-|app-|catalog-|view-)[\w-]+\.html$", "deb:sqlite3-doc": r"(lang_|c3ref/|pragma|json)[\w/-]*\.html$",
        "deb:python-werkzeug-doc": r"html/[\w/-]+\.html$", "deb:libeigen3-doc": r"html/(group|Topic|class)\w+\.html$",
        "deb:tcl8.6-doc": r"(TclCmd|TkCmd)/\w+\.html?$|\.3\w*\.gz$", "deb:gsl-ref-html": r"\.html$",
        "deb:erlang-doc": r"doc/html/[\w/.-]+/(man|doc)?[\w/-]+\.html$", "deb:sbcl-doc": r"\.html$",
    }),
    "rfc": (80, {
        "deb:doc-rfc-std": r"rfc\d+\.txt(\.gz)?$", "deb:doc-rfc-fyi-bcp": r"rfc\d+\.txt(\.gz)?$",
        "deb:doc-rfc-experimental": r"rfc\d+\.txt(\.gz)?$", "deb:doc-rfc-old-std": r"rfc\d+\.txt(\.gz)?$",
        "deb:doc-rfc-others": r"rfc\d+\.txt(\.gz)?$", "src:openssh": r"/PROTOCOL[\w.]*$", "src:git": r"Documentation/technical/[\w-]+\.txt$",
        "src:zstd": r"doc/[\w-]+\.md$", "src:lz4": r"doc/[\w-]+\.md$", "deb:debian-policy": r"policy\.html/[\w-]+\.html$",
    }),
    "man": (90, {
        "deb:manpages": r"/man[1-8]/[\w.-]+\.gz$", "deb:manpages-dev": r"/man[23]/[\w.-]+\.gz$", "deb:freebsd-manpages": r"/man[4-9]f?/[\w.-]+\.gz$",
        "deb:git-man": r"/man1/[\w.-]+\.gz$", "deb:coreutils": r"/man1/[\w.-]+\.gz$", "deb:openssh-client": r"share/man/man\d/[\w.-]+\.gz$",
        "deb:openssl": r"share/man/man\d/[\w.-]+\.gz$", "deb:util-linux": r"share/man/man\d/[\w.-]+\.gz$", "deb:systemd": r"share/man/man\d/[\w.@-]+\.gz$",
        "deb:iproute2": r"share/man/man\d/[\w.-]+\.gz$", "deb:lvm2": r"share/man/man\d/[\w.-]+\.gz$", "deb:moreutils": r"share/man/man\d/[\w.-]+\.gz$",
    }),
    "discussion": (90, {
        "src:notmuch": r"test/corpora/[\w/]+.*/(cur/[^/]+|lkml[^/]*|\d+[^/]*)$", "src:spamassassin": r"t/data/(nice|spam)/[\w.-]+$",
        "src:mu": r"/testdata?\w*/.*/cur/[^/]+$|testdir\w*/.*$", "src:rspamd": r"\.eml$", "src:public-inbox": r"\.(eml|mbox)$|Documentation/(design|include|reproducib|RelNotes|ids|mail)\w*.*\.(txt|eml|pod)$",
        "deb:doc-debian": r"\.txt(\.gz)?$", "deb:debian-faq": r"en\.html$|\.en\.txt(\.gz)?$", "src:sqlite3": r"doc/[\w-]+\.(txt|md|html)$",
        "src:git": r"Documentation/howto/[\w-]+\.txt$|Documentation/(SubmittingPatches|CodingGuidelines|MyFirst\w+)(\.txt)?$",
        "src:curl": r"docs/(TODO|FAQ|KNOWN_BUGS|HISTORY\.md|CODE_REVIEW\.md|INTERNALS\.md|MAIL-ETIQUETTE|HTTP3\.md|BUGS\.md|CONTRIBUTE\.md|PARALLEL\w*\.md)$",
        "src:bash": r"(CWRU/[\w/.-]+|NOTES|POSIX|doc/FAQ|COMPAT|Y2K)$", "deb:emacs-common": r"etc/(TODO|DEBUG|PROBLEMS|CENSORSHIP|THE-GNU-PROJECT|GNU|LINUX-GNU|WHY-FREE|MORE\.STUFF)(\.gz)?$",
        "src:tcl8.6": r"(README[\w.]*|doc/[\w.]+\.txt)$", "src:pcre2": r"(HACKING|NON-AUTOTOOLS-BUILD|README)$", "src:mercurial": r"contrib/[\w/.-]+\.(txt|rst)$|(mercurial/helptext|help)/[\w/-]+\.txt$",
        "src:python-docutils": r"docs/dev/(rst/)?[\w-]+\.txt$", "src:devscripts": r"README[\w.]*$|doc/[\w.-]+$", "src:lighttpd": r"doc/outdated/[\w.-]+\.txt$",
    }),
    "changelog": (65, {
        **{f"src:{name}": r"/(ChangeLog|CHANGELOG|CHANGES|NEWS|RELEASE[-_]NOTES|HISTORY)[\w.-]*(\.md|\.rst|\.txt)?$|debian/changelog$" for name in (
            "zlib", "redis", "curl", "tmux", "less", "bc", "gdbm", "libevent", "expat", "pcre2", "nano", "debhelper", "dpkg", "bash-completion", "junit4", "jsoup", "xxhash", "lua5.4")},
        **{f"deb:{name}": r"doc/[\w.-]+/(changelog|NEWS|changelog\.Debian|NEWS\.Debian)\.gz$" for name in (
            "coreutils", "systemd", "util-linux", "iproute2", "openssl", "lvm2", "moreutils", "emacs-common", "gnuplot-doc", "vim-doc", "apache2-doc", "cmake-doc", "octave-doc")}}),
    "licence": (45, {
        "deb:base-files": r"common-licenses/[\w.-]+$", **{f"src:{name}": r"/(COPYING|LICEN[SC]E|NOTICE|COPYRIGHT)[\w.-]*$" for name in (
            "curl", "git", "bash", "sqlite3", "expat", "pcre2", "tcl8.6", "zstd", "ipython", "statsmodels", "nltk", "guava-libraries", "busybox", "openssh", "redis")},
        **{f"deb:{name}": r"doc/[\w.-]+/copyright$" for name in ("coreutils", "openssl", "systemd", "gnuplot-doc", "ffmpeg-doc", "vim-doc")},
    }),
    "marketing": (75, {f"npm:{name}": r"README[\w.-]*\.(md|markdown)$" for name in (
        "@sentry/browser", "@sentry/node", "stripe", "twilio", "algoliasearch", "@auth0/auth0-react", "dd-trace", "posthog-js", "mixpanel-browser", "@supabase/supabase-js",
        "firebase", "next", "nuxt", "vite", "tailwindcss", "prisma", "@mui/material", "antd", "bootstrap", "electron", "gatsby", "@storybook/react", "cypress", "playwright",
        "webpack", "turbo", "netlify-cli", "vercel", "@clerk/nextjs", "contentful", "@sanity/client", "launchdarkly-js-client-sdk", "swiper", "ag-grid-community", "handsontable",
        "@ckeditor/ckeditor5-core", "tinymce", "froala-editor", "highcharts", "fullpage.js", "gsap", "lightgallery", "slick-carousel", "primereact", "devextreme")}
        | {f"pypi:{name}": r"METADATA$" for name in ("streamlit", "wandb", "comet-ml", "neptune", "gradio", "dash", "plotly", "prefect", "dagster", "snowflake-connector-python", "pinecone",
        "anthropic", "newrelic", "ddtrace", "sentry-sdk", "twilio", "sendgrid", "mlflow", "rich", "textual", "nicegui", "reflex", "taipy", "modal", "honeybadger")}),
    "python": (110, {
        "src:networkx": r"networkx/(?!.*tests/)[\w/]+\.py$", "src:nltk": r"nltk/[\w/]+\.py$", "src:statsmodels": r"statsmodels/(tsa|stats|discrete|nonparametric)/[\w]+\.py$",
        "src:lmfit-py": r"\.py$", "src:qutip": r"qutip/[\w/]+\.py$", "src:gensim": r"\.py$", "src:healpy": r"\.py$", "src:sqlglot": r"\.py$",
        "pypi:sortedcontainers": r"\.py$", "pypi:more-itertools": r"\.py$", "pypi:python-chess": r"\.py$", "pypi:chess": r"\.py$", "pypi:toolz": r"\.py$", "pypi:simpy": r"\.py$",
        "pypi:bottle": r"\.py$", "pypi:tinydb": r"\.py$", "pypi:pyparsing": r"\.py$", "pypi:lark": r"\.py$", "pypi:oauthlib": r"\.py$", "pypi:dnspython": r"\.py$",
        "pypi:algorithms": r"\.py$", "pypi:openpyxl": r"\.py$", "pypi:zope.interface": r"\.py$", "pypi:boltons": r"\.py$", "pypi:tornado": r"\.py$",
    }),
    "javascript": (110, {f"npm:{name}": r"(?<!\.min)(?<!\.d)\.(js|mjs|ts|tsx|jsx)$" for name in (
        "lodash", "express", "d3-array", "d3-geo", "commander", "async", "underscore", "zod", "rxjs", "immutable", "preact", "redux", "mathjs", "marked", "acorn", "yargs",
        "date-fns", "chess.js", "simple-statistics", "kdbush", "earcut", "fflate", "ramda", "socket.io", "ws", "mobx", "nanoid", "typeorm", "@angular/core", "fp-ts", "jsnes", "delaunator")}),
    "c": (110, {f"src:{name}": r"\.(c|h|cc|cpp)$" for name in (
        "zlib", "lua5.4", "jq", "redis", "curl", "tmux", "libuv1", "busybox", "less", "zstd", "gdbm", "bc", "git", "xxhash", "expat", "pcre2", "libpng1.6", "mawk", "libevent", "lighttpd", "sqlite3",
        "openssh", "tcl8.6", "nano")}),
    "rust": (100, {f"deb:librust-{name}-dev": r"\.rs$" for name in (
        "regex", "itertools", "rand", "serde", "nom", "memchr", "hashbrown", "petgraph", "num-bigint", "clap", "tokio", "rayon", "bstr", "aho-corasick", "time", "image", "anyhow")}),
    "go": (100, {
        "deb:golang-1.19-src": r"src/(sort|container|strings|net|compress|image|math|go|sync|text|regexp)/[\w/]+\.go$",
        **{f"deb:golang-{name}-dev": r"\.go$" for name in (
            "github-spf13-cobra", "github-gorilla-mux", "golang-x-text", "github-pkg-errors", "github-stretchr-testify", "gopkg-yaml.v3", "github-google-btree", "google-grpc",
            "github-gin-gonic-gin", "github-boltdb-bolt", "github-hashicorp-golang-lru", "github-prometheus-client-golang", "golang-x-crypto", "github-emirpasic-gods")}}),
    "java": (100, {f"src:{name}": r"\.java$" for name in (
        "guava-libraries", "junit4", "jackson-core", "libcommons-io-java", "libcommons-collections4-java", "commons-math3", "libcommons-codec-java", "jsoup", "httpcomponents-client",
        "commons-csv", "libcommons-lang3-java", "libgoogle-gson-java", "libjoda-time-java", "antlr4", "javaparser", "jgrapht", "picocli", "hsqldb", "jgit")}),
    "shell": (90, {f"src:{name}": r"\.(sh|bash|zsh|bats)$|/(bin|scripts|libexec|hooks|init\.d|completions|lib)/[\w.-]+$|/(mk)?[\w-]+(tmpfs|ramfs)$" for name in (
        "bash", "shunit2", "bats", "testssl.sh", "rkhunter", "autojump", "neofetch", "initramfs-tools", "live-build", "openrc", "dracut", "debootstrap", "password-store", "etckeeper",
        "bash-completion", "byobu", "zsh-syntax-highlighting", "git", "devscripts", "postgresql-common", "ifupdown")}),
    "sql": (75, {
        **{f"src:{name}": r"\.(sql|pgsql|ddl)$" for name in ("icinga2", "repmgr", "freeradius", "ledgersmb", "libdbi-drivers")},
        **{f"deb:{name}": r"\.(sql|pgsql|ddl)(\.gz)?$" for name in (
            "postgresql-15", "postgresql-15-pgtap", "postgresql-15-partman", "postgresql-15-periods", "postgresql-15-powa", "postgresql-15-pgrouting-scripts", "postgresql-15-orafce",
            "postgresql-15-pgq3", "postgresql-15-unit", "postgresql-15-mimeo", "postgresql-15-londiste-sql", "postgresql-15-pgl-ddl-deploy", "bacula-director-pgsql", "roundcube-core", "phpmyadmin",
            "mariadb-server", "postgresql-15-q3c", "icinga2-ido-pgsql")}}),
    "notebook": (90, {
        "src:pyswarms": r"\.ipynb$", "src:bqplot": r"\.ipynb$", "deb:python-sklearn-doc": r"\.ipynb$", "deb:python-skimage-doc": r"\.ipynb$",
        **{f"sdist:{name}": r"\.ipynb$" for name in (
            "seaborn", "emcee", "lmfit", "ipywidgets", "ipyparallel", "nbconvert", "papermill", "jupytext", "arviz", "lifelines", "umap-learn", "corner", "mapclassify", "pgmpy", "quantecon", "yellowbrick",
            "mlxtend", "bambi", "mesa", "ipyleaflet", "GPyOpt", "altair", "xarray", "sbi", "nbclient", "uncertainties")}}),
}  # fmt: skip


# Packages: one archive each, in FOLDER/archives, and the regular files in it.


def apt_settings(folder: Path) -> dict[str, str]:
    """An environment in which apt-get knows source packages and non-free ones and keeps its lists in `folder`."""
    home = folder / "apt"
    if not (home / "apt.conf").exists():
        for part in ("lists/partial", "cache/archives/partial", "parts"):
            (home / part).mkdir(parents=True, exist_ok=True)
        lines = Path("/etc/apt/sources.list.d/debian.sources").read_text(encoding="utf-8")
        lines = re.sub(r"(?m)^Types:.*", "Types: deb deb-src", lines)
        (home / "parts/all.sources").write_text(re.sub(r"(?m)^Components:.*", "Components: main non-free", lines))
        (home / "apt.conf").write_text(
            f'Dir::Etc::sourceparts "{home}/parts/";\nDir::Etc::sourcelist "/dev/null";\n'
            f'Dir::State::lists "{home}/lists";\nDir::Cache "{home}/cache";\nAPT::Sandbox::User "root";\n'
        )
    settings = {**os.environ, "APT_CONFIG": str(home / "apt.conf")}
    if not any((home / "lists").glob("*Sources*")):
        subprocess.run(["apt-get", "-qq", "update"], env=settings, check=True)
    return settings


def fetch(package: str, version: str | None, folder: Path) -> tuple[Path, str]:
    """(archive, version) of `deb:`, `src:`, `npm:` or `pypi:` and a name, the newest where no version is given."""
    system, name = package.split(":", 1)
    stored = folder / "archives" / re.sub(r"[^\w.+-]", "_", package)
    (folder / "archives").mkdir(exist_ok=True)
    with (stored.parent / f"{stored.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # several domains may be drawn at once
        return _fetch(system, name, version, folder, stored)


def _fetch(system: str, name: str, version: str | None, folder: Path, stored: Path) -> tuple[Path, str]:
    known = stored / "version"
    if known.exists() and version in (None, known.read_text()):
        return next(path for path in stored.iterdir() if path != known), known.read_text()
    stored.mkdir(parents=True, exist_ok=True)
    for path in stored.iterdir():
        path.unlink()
    if system in ("deb", "src"):
        settings, wanted = apt_settings(folder), name + (f"={version}" if version else "")
        command = ["apt-get", "-qq", "download"] if system == "deb" else ["apt-get", "-qq", "--download-only", "--tar-only", "source"]
        subprocess.run([*command, wanted], cwd=stored, env=settings, check=True, capture_output=True)
        if not version:
            show = "show" if system == "deb" else "showsrc"
            found = subprocess.run(["apt-cache", show, name], env=settings, check=True, capture_output=True, text=True)
            version = max(re.findall(r"(?m)^Version: (.*)$", found.stdout), key=_debian_order)
    elif system == "npm":
        wanted = f"{name}@{version}" if version else name
        subprocess.run(["npm", "pack", "--silent", wanted], cwd=stored, check=True, capture_output=True)
        version = version or re.search(r"-(\d[^-]*(?:-.*)?)\.tgz$", next(stored.iterdir()).name).group(1)  # type: ignore[union-attr]
    else:
        wanted = f"{name}=={version}" if version else name
        form = ["--no-binary", ":all:"] if system == "sdist" else ["--only-binary", ":all:"]
        pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", *form, wanted]
        subprocess.run(pip, cwd=stored, check=True, capture_output=True, timeout=120)
        version = version or next(stored.iterdir()).name.removesuffix(".tar.gz").split("-")[1]
    archives = [p for p in sorted(stored.iterdir(), key=lambda p: -p.stat().st_size) if p.suffix not in (".asc", ".dsc")]
    for path in archives[1:]:
        path.unlink()
    known.write_text(version)
    return archives[0], version


def _debian_order(version: str) -> tuple[Any, ...]:
    return tuple(int(part) if part.isdigit() else -1 for part in re.split(r"(\d+)", version))


def files(archive: Path, wanted: Callable[[str], bool]) -> Iterator[tuple[str, bytes]]:
    """(path, bytes) of the regular files of an archive that are wanted, in its order."""
    if zipfile.is_zipfile(archive) and archive.suffix in (".whl", ".zip"):
        with zipfile.ZipFile(archive) as opened:
            for entry in opened.infolist():
                if wanted(entry.filename) and entry.file_size <= MAX_FILE_BYTES:
                    yield entry.filename, opened.read(entry)
        return
    process = None
    if archive.suffix == ".deb":
        process = subprocess.Popen(["dpkg-deb", "--fsys-tarfile", archive], stdout=subprocess.PIPE)
    with tarfile.open(archive if process is None else None, "r|*", process and process.stdout) as opened:
        for entry in opened:
            if entry.isreg() and wanted(entry.name) and entry.size <= MAX_FILE_BYTES:
                yield entry.name, opened.extractfile(entry).read()  # type: ignore[union-attr]
    if process is not None:
        process.wait()


# Texts: what the data stage would make of a file, and pages of manuals without their marks.


def text_of(path: str, data: bytes) -> tuple[str, str]:
    """(text, kind) of a file. Raises `Unreadable`."""
    if path.endswith(".gz"):
        path, data = path[:-3], gzip.decompress(data)
    ending = Path(path).suffix.lower()
    if ending in (".html", ".htm"):
        return main_text(decode_page(data)), PROSE
    if ending == ".ipynb":
        return notebook_text(decode_text(data)), CODE
    if re.search(r"/man\d\w*/", path):
        return without_marks(decode_text(data)), PROSE
    if Path(path).name == "METADATA":
        return decode_text(data).partition("\n\n")[2], PROSE
    text = decode_code(data) if ending == ".py" else decode_text(data)
    return text, PLAIN_ENDINGS.get(ending, CODE if text.startswith("#!") else PROSE)


_TITLES, _BREAKS = re.compile(r"^\.\s*S[hHsS]\s+(.*)"), re.compile(r"^\.\s*(PP|P|LP|IP|TP|Pp|It|br|sp|RS|RE|nf|fi)\b\s*(.*)")
_WORDS_AFTER = re.compile(r"^\.\s*(?:[BIR]{1,2}|SB|SM|Nm|Nd|Xr|Fl|Ar|Pa|Cm|Op|Va|Vt|Fn|Ft|Fa|Dv|Er|Ev|Em|Sy|Li|Ql|Dq|Sq|Pq|Bx|Fx|An|Ic)\s+(.*)")
_ESCAPES = ((re.compile(r"\\f(?:\[\w*\]|\(..|.)"), ""), (re.compile(r"\\s[+-]?\d+|\\[&|^/,:%]|\\c$"), ""), (re.compile(r"\\\((?:aq|cq|oq)|\\\[aq\]"), "'"),
            (re.compile(r"\\\((?:lq|rq)|\\\*\([lr]q|\\\*\(.\""), '"'), (re.compile(r"\\\(em|\\\[em\]"), "--"), (re.compile(r"\\\((?:bu|ci)|\\\[bu\]"), "*"),
            (re.compile(r"\\\((?:en|mi|hy)"), "-"), (re.compile(r"\\[*]?\(..|\\[*]?\[[^]]*\]"), ""), (re.compile(r"\\e|\\\\"), r"\\"), (re.compile(r"\\([- .'`~\"])"), r"\1"))  # fmt: skip


def without_marks(page: str) -> str:
    """The words of a manual page in troff: titles, paragraphs and terms, without fonts and spacing."""
    lines: list[str] = []
    for line in page.split("\n"):
        if line.startswith(("'\\\"", ".\\\"")):
            continue
        if title := _TITLES.match(line):
            lines += ["", title.group(1).strip('"')]
        elif found := _BREAKS.match(line):
            lines += [found.group(2).strip('"')] if found.group(1) in ("IP", "It") and found.group(2) else [""]
        elif words := _WORDS_AFTER.match(line):
            lines.append(words.group(1).replace('"', ""))
        elif not line.startswith((".", "'")):
            lines.append(line)
    text = "\n".join(lines)
    for pattern, plain in _ESCAPES:
        text = pattern.sub(plain, text)
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


# Drawing documents.


def draw(folder: Path, domains: Sequence[str]) -> list[dict[str, Any]]:
    """The documents of the plan, each with its text; packages that cannot be had are named and left out."""
    found: list[dict[str, Any]] = []
    seen: set[str] = set()
    for domain in domains:
        wanted, packages = PLAN[domain]
        pools: dict[str, list[dict[str, Any]]] = {}
        for package, pattern in packages.items():
            try:
                pools[package] = _pool(folder, domain, package, re.compile(pattern), seen)
            except (subprocess.SubprocessError, StopIteration, OSError, tarfile.TarError) as error:
                print(f"{domain}: {package} left out: {error}", file=sys.stderr, flush=True)
        chosen = _round_robin(pools, wanted)
        print(f"{domain}: {len(chosen)} documents of {len({d['package'] for d in chosen})} packages", flush=True)
        found += chosen
    return found


def _pool(folder: Path, domain: str, package: str, pattern: re.Pattern[str], seen: set[str]) -> list[dict[str, Any]]:
    """Up to `MOST_OF_A_PACKAGE` documents of a package, of all lengths, in a random order."""
    archive, version = fetch(package, None, folder)
    draws = random.Random(f"{SEED} {domain} {package}")
    texts = {path: data for path, data in files(archive, lambda path: bool(pattern.search(path)))}
    by_length = sorted(texts, key=lambda path: (len(texts[path]), path))
    n_bins = min(MOST_OF_A_PACKAGE + 6, len(by_length))
    bins = [by_length[len(by_length) * i // n_bins : len(by_length) * (i + 1) // n_bins] for i in range(n_bins)]
    documents = []
    for paths in bins:
        for path in draws.sample(paths, min(4, len(paths))):
            try:
                text, kind = text_of(path, texts[path])
            except (Unreadable, OSError, EOFError):
                continue
            start = _start(text, kind, draws)
            piece = text[start : start + CHARACTERS]
            digest = hashlib.sha256(piece.encode("utf-8", "surrogatepass")).hexdigest()
            if len(piece.strip()) >= LEAST_CHARACTERS and digest not in seen and "\0" not in piece:
                seen.add(digest)
                documents.append({"domain": domain, "package": package, "version": version, "path": path, "start": start,
                                  "kind": kind, "characters": len(piece), "sha256": digest, "text": piece})  # fmt: skip
                break
    draws.shuffle(documents)
    return documents[:MOST_OF_A_PACKAGE]


def _start(text: str, kind: str, draws: random.Random) -> int:
    """0, or where a later paragraph begins: heads of long files are titles and licences more often than the rest is."""
    if len(text) < CHARACTERS * 3 // 2 or draws.random() > (0.5 if kind == PROSE else 0.3):
        return 0
    at = text.find("\n\n", draws.randrange(len(text) - CHARACTERS))
    return 0 if at < 0 or at + 2 > len(text) - 1_000 else at + 2


def _round_robin(pools: dict[str, list[dict[str, Any]]], wanted: int) -> list[dict[str, Any]]:
    chosen: list[dict[str, Any]] = []
    for turn in range(MOST_OF_A_PACKAGE):
        for pool in pools.values():
            if turn < len(pool) and len(chosen) < wanted:
                chosen.append(pool[turn])
    return chosen


def write_lines(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8", errors="surrogatepass")


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8", errors="surrogatepass").splitlines()]


# Batches for raters: blind, mixed over domains; texts to fool and documents rated before among them.


def write_batches(folder: Path) -> None:
    """batches/NNN.txt, second/NNN.txt, and key.jsonl: what stands behind each id. A quarter is rated twice. Documents
    that were drawn since the last call get batches of their own."""
    key = read_lines(folder / "key.jsonl") if (folder / "key.jsonl").exists() else []
    draws, known = random.Random(f"{SEED} {len(key)}"), {row["sha256"] for row in key if "sha256" in row}
    drawn = [row for path in sorted(folder.glob("documents-*.jsonl")) for row in read_lines(path)]
    every = list({row["sha256"]: row for row in drawn if row["sha256"] not in known}.values())
    if not key:
        texts = [row["text"] for row in sorted(every, key=lambda row: row["sha256"])]
        every += [
            {"domain": "fooling", "package": f"fooling:{kind}", "version": "", "path": str(seed), "start": 0,
             "kind": PROSE, "text": fool(kind, texts, seed)}
            for kind in KINDS for seed in range(RATED_OF_A_KIND)
        ]  # fmt: skip
        labels = read_labels()
        old, _ = find_documents(labels)
        every += [
            {"domain": "rated before", "package": label.distribution, "version": label.version, "path": label.path,
             "start": 0, "kind": label.kind, "text": old[label.path].text}
            for label in draws.sample([label for label in labels if label.path in old], RATED_BEFORE)
        ]  # fmt: skip
    taken = {row["id"] for row in key}
    for name, chosen in (("batches", every), ("second", draws.sample(every, len(every) // 4))):
        (folder / name).mkdir(exist_ok=True)
        batch = len(list((folder / name).glob("*.txt")))
        order = draws.sample(chosen, len(chosen))
        free = [number for number in range(10_000, 100_000) if f"{name[0]}{number}" not in taken]
        ids = [f"{name[0]}{number}" for number in draws.sample(free, len(order))]
        for first in range(0, len(order), BATCH_DOCUMENTS):
            part = list(zip(ids, order, strict=True))[first : first + BATCH_DOCUMENTS]
            shown = "\n".join(_shown(number, row) for number, row in part)
            path = folder / name / f"{batch + first // BATCH_DOCUMENTS:03}.txt"
            path.write_text(shown, encoding="utf-8", errors="replace")
            key += [{"id": number, "batch": path.stem, **row} for number, row in part]
        print(f"{name}: {len(order)} documents from {batch:03} on")
    write_lines(folder / "key.jsonl", key)


def _shown(number: str, row: dict[str, Any]) -> str:
    text, ending = row["text"].strip("\n"), Path(row["path"].removesuffix(".gz")).suffix
    ending = ending if ending.lower() in PLAIN_ENDINGS or ending == ".ipynb" else ""
    if len(text) > SHOWN_HEAD + SHOWN_MIDDLE:
        middle = (SHOWN_HEAD + len(text)) // 2
        text = f"{text[:SHOWN_HEAD]}\n[... middle ...]\n{text[middle : middle + SHOWN_MIDDLE]}"
    return f"@@@@@@@@@@ {number} {ending} ({len(row['text']):,} characters)\n{text}\n"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("action", choices=["draw", "batches"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--domains", nargs="*", default=list(PLAN))
    chosen = parser.parse_args()
    if chosen.action == "draw":
        for name in chosen.domains:
            write_lines(chosen.folder / f"documents-{name}.jsonl", draw(chosen.folder, [name]))
    else:
        write_batches(chosen.folder)
