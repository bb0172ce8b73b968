#!/bin/sh
# Makes the environment in .venv: the tested set of constraints.txt, and the build of torch that fits this machine.
#
#   TORCH_BACKEND=cpu|cu126|cu130|rocm6.4|…   choose the build instead of looking at the machine
#   PYTHON=python3.12                         the interpreter to make the environment with
#
# torch decides which triton fits it, so torch goes first and the rest is installed around it.
set -eu
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3}
say() { printf '%s\n' "install: $*" >&2; }

"$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || {
    say "$PYTHON is not Python 3.11 or newer: name one with  make install PYTHON=python3.12"
    exit 2
}
if [ ! -x .venv/bin/python ] || ! .venv/bin/python -c '' 2>/dev/null; then
    say "making .venv with $("$PYTHON" --version)"
    rm -rf .venv
    "$PYTHON" -m venv .venv || { say "the venv module is missing (Debian, Ubuntu: apt install python3-venv)"; exit 2; }
fi
pip() { .venv/bin/python -m pip --disable-pip-version-check --quiet "$@"; }

# What this machine has: an NVIDIA driver, an AMD one, or neither.
gpu=none
[ -e /proc/driver/nvidia/version ] && gpu=nvidia
[ "$gpu" = none ] && [ -e /dev/kfd ] && gpu=amd
torch=$(sed -n 's/^torch==//p' constraints.txt)
have=$(.venv/bin/python -c 'import importlib.metadata as m; print(m.version("torch"))' 2>/dev/null || true)

install_torch() {
    backend=${TORCH_BACKEND:-auto}
    if [ "$backend" = auto ] && [ "$gpu" = none ] && pip install "torch==$torch+cpu" 2>/dev/null; then
        return # where pip is configured to find a CPU build, it is the smallest way
    fi
    # uv knows the build that fits the driver and where it lives
    if pip install uv && .venv/bin/uv pip install --quiet --python .venv/bin/python --reinstall-package torch \
        --torch-backend "$backend" "torch==$torch"; then
        return
    fi
    say "no build chosen by hardware could be had; taking what pip finds for torch $torch (on Linux with CUDA libraries: several GB)"
    pip install "torch==$torch"
}

case "$have" in
"$torch" | "$torch"+*) [ -z "${TORCH_BACKEND:-}" ] || install_torch ;;
*)
    say "installing torch $torch (GPU here: $gpu; minutes on a slow line)"
    install_torch
    ;;
esac

have=$(.venv/bin/python -c 'import importlib.metadata as m; print(m.version("torch"))')
say "torch $have; installing the rest"
case "$have" in
*+rocm*)
    # ROCm builds bring a triton of their own under another name: ours would overwrite it
    grep -v '^triton==' constraints.txt > .venv/constraints.txt
    pip install -c .venv/constraints.txt $(.venv/bin/python tools/requirements.py --without triton torch)
    pip install --no-deps -e .
    ;;
*+cu12*) pip install -c constraints.txt -e '.[dev,cuda12]' ;;
*+cu13*) pip install -c constraints.txt -e '.[dev,cuda13]' ;;
*+cpu) pip install -c constraints.txt -e '.[dev,nvrtc]' ;;
*)
    cuda=$(.venv/bin/python -c 'import torch; print((torch.version.cuda or "").partition(".")[0])')
    pip install -c constraints.txt -e ".[dev${cuda:+,cuda$cuda}]"
    ;;
esac
say "ready: .venv/bin/python run_suite.py"
