#!/bin/sh
# Makes the Python environment of this project; the Makefile runs it for you.
#
#   ./install.sh             make or update the environment, print where it is
#   ./install.sh --where     only print where it is (or would be)
#   PYTHON=/path/to/python3  the Python for a new environment
#   TORCH=cpu                the CPU build of torch, whatever graphics card is there
#
# A torch that is already there is kept: a ROCm or CUDA build is never replaced.
set -eu

root=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
cd "$root"

say() { printf '%s\n' "$*"; }
die() { printf 'install.sh: %s\n' "$*" >&2; exit 1; }

# --- which environment ---------------------------------------------------------------------

usable() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 10))' >/dev/null 2>&1; }

find_python() {
    # A PYTHON that was asked for is used or refused, never silently replaced.
    if [ -n "${PYTHON:-}" ]; then set -- "$PYTHON"
    else set -- python3 python3.13 python3.12 python3.11 python3.10; fi
    for candidate; do
        if usable "$candidate"; then say "$candidate"; break; fi
    done
}

# The environment that a Python belongs to; nothing for a Python outside of any.
environment_of() {
    "$1" -c 'import sys; print(sys.prefix if sys.prefix != sys.base_prefix else "")'
}

base=
if [ -n "${VIRTUAL_ENV:-}" ]; then
    env=$VIRTUAL_ENV
elif usable "$root/.venv/bin/python"; then
    env=$root/.venv
else
    # Some GPU images put the Python of an environment first on PATH without activating it.
    # A new environment made by it would not see its torch, so we work in that one.
    base=$(find_python)
    env=${base:+$(environment_of "$base")}
    env=${env:-$root/.venv}
fi
python=$env/bin/python

case ${1:-} in
    --where) say "$env"; exit ;;
    '') ;;
    *) die "unknown option $1 (the head of this file lists them)." ;;
esac
case ${TORCH:-} in
    '' | cpu) ;;
    *) die "TORCH=$TORCH is unknown: leave it out, or say TORCH=cpu." ;;
esac

# The installed version of a package, without importing it; nothing where there is none.
version_in() {
    "$1" -c '
import sys
from importlib.metadata import PackageNotFoundError, version
try:
    print(version(sys.argv[1]))
except PackageNotFoundError:
    pass' "$2"
}

if usable "$python"; then
    :
elif [ "$env" != "$root/.venv" ]; then
    die "no Python 3.10 or newer in the active environment $env: activate another one, or 'unset VIRTUAL_ENV'."
else
    if [ -z "$base" ]; then
        [ -z "${PYTHON:-}" ] || die "PYTHON=$PYTHON does not run, or is older than Python 3.10."
        die "found no Python 3.10 or newer: install one (Debian: apt install python3 python3-venv), or name it: PYTHON=/path/to/python3 make test"
    fi
    "$base" -c 'import ensurepip, venv' 2>/dev/null ||
        die "$base lacks the venv module: install it (Debian: apt install python3-venv), then run this again."
    share=
    if [ "${TORCH:-}" != cpu ]; then
        torch=$(version_in "$base" torch)
        if [ -n "$torch" ]; then
            say "$base has torch $torch: the new environment shares its packages"
            share=--system-site-packages
        fi
    fi
    say "making $env with $("$base" --version)"
    "$base" -m venv --clear ${share:+"$share"} "$env"
fi

# --- anything to do? -----------------------------------------------------------------------

# The stamp lies in the environment and names this folder and its torch: a new environment, a
# moved project and another torch each bring a new run.
stamp=$env/.plant-disease-trainer
torch=$(version_in "$python" torch)
if [ -n "$torch" ] && [ -e "$stamp" ] && [ "$(cat "$stamp")" = "$root $torch" ] &&
    [ -z "$(find pyproject.toml constraints.txt install.sh train/_jpeg.c train/_pixels.c -newer "$stamp")" ]; then
    say "environment: $env"
    exit
fi

# --- torch ---------------------------------------------------------------------------------

tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
trap 'exit 1' HUP INT TERM

pip_install() { "$python" -m pip install "$@" >"$tmp/log" 2>&1; }
failed() { tail -n 40 "$tmp/log" >&2; die "$*"; }

"$python" -m pip --version >/dev/null 2>&1 ||
    "$python" -m ensurepip >/dev/null 2>&1 || # environments made by uv come without pip
    die "no pip in $env: install it there, then run this again."

# The release in constraints.txt, the one that the tests ran with.
tested() { sed -n "s/^$1==\\([^ ;]*\\).*/\\1/p" constraints.txt; }

if [ -n "$torch" ]; then
    say "keeping torch $torch"
    if [ -z "$(version_in "$python" torchvision)" ]; then
        # Each torchvision fits one torch: 0.24.1 goes with 2.9.1, 0.28.0 with 2.13.0.
        # --no-deps: its own wish for a torch must not bring another one.
        vision=$(say "$torch" | sed 's/+.*//' | awk -F. '/^2\.[0-9]+\.[0-9]+$/ { print "0." $2 + 15 "." $3 }')
        cure="install the torchvision that belongs to torch $torch from where that torch came, then run this again."
        [ -n "$vision" ] || die "there is no torchvision, and none on PyPI fits this torch: $cure"
        say "installing torchvision $vision, which belongs to it"
        pip_install --no-deps "torchvision==$vision" || failed "could not install torchvision $vision: $cure"
    fi
elif [ "${TORCH:-}" != cpu ] && nvidia-smi >/dev/null 2>&1; then
    say "NVIDIA card: torch $(tested torch) comes with CUDA, several GB (TORCH=cpu takes the small CPU build)"
elif [ "${TORCH:-}" != cpu ] && [ -e /dev/kfd ]; then
    die "AMD card, and no torch yet. Install the ROCm build, which make then keeps: '$python -m pip install torch torchvision --index-url https://download.pytorch.org/whl/rocm7.2' (or leave the card unused: TORCH=cpu make test)."
else
    say "installing torch $(tested torch), the CPU build"
    # First a wheel that your pip configuration points to (find-links), else PyTorch's own index.
    # PyPI's torch would bring several GB of CUDA. --no-deps: the rest comes from PyPI, below.
    pip_install --no-index --no-deps "torch==$(tested torch)" ||
        pip_install --no-deps --index-url https://download.pytorch.org/whl/cpu \
            "torch==$(tested torch)" "torchvision==$(tested torchvision)" ||
        failed "could not install torch: the reason stands above."
fi

# --- the rest ------------------------------------------------------------------------------

# Pin the torch that is there now. One that is not the tested release may want other releases of
# what it requires (2.6 wants sympy 1.13.1): their pins give way.
"$python" - constraints.txt >"$tmp/constraints.txt" <<'END'
import re
import sys
from importlib.metadata import PackageNotFoundError, requires, version


def name(requirement):
    return re.sub(r"[-_.]+", "-", re.match(r"[\w.-]+", requirement)[0]).lower()


def installed(package):
    try:
        return version(package)
    except PackageNotFoundError:
        return None


with open(sys.argv[1], encoding="utf-8") as file:
    pins = [line for line in file.read().splitlines() if line and line[0] != "#"]
here = {package: installed(package) for package in ("torch", "torchvision")}
here = {package: release for package, release in here.items() if release}
replaced = set(here)
if "torch" in here and f"torch=={here['torch'].partition('+')[0]}" not in pins:
    replaced.update(name(r) for r in requires("torch") or () if "extra ==" not in r)
pins = [pin for pin in pins if name(pin) not in replaced]
pins += [f"{package}=={release}" for package, release in here.items()]
print("\n".join(pins))
END

say "installing the project and its tools (the first time takes a few minutes)"
pip_install -c "$tmp/constraints.txt" -e '.[dev]' ||
    failed "pip could not install the project: the reason stands above."
"$python" -c 'import train._jpeg, train._pixels' 2>/dev/null ||
    say "train/_jpeg.c (without it photos decode about a fifth slower) or train/_pixels.c (without it a photo takes about a fifth longer in all) was not built: they need a C compiler and the headers of Python and libjpeg-turbo (Debian: apt install gcc python3-dev libjpeg62-turbo-dev), then '$python -m pip install --no-deps -e .'"
say "$root $(version_in "$python" torch)" >"$stamp"
say "environment: $env"
