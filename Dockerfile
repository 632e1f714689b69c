# mast3r-sfm on a GPU. Built by ./build.sh, run by ./predict.sh.
#
# The base brings Python and torch; both stay as they are. UPSTREAM=none leaves the published code out.
ARG BASE_IMAGE=pytorch/pytorch:2.9.0-cuda12.8-cudnn9-devel
ARG UPSTREAM=published

# --- the published MASt3R, an independent witness for `mast3r-sfm compare`; nothing else reads it ---------------------
# (a stage that starts from an argument has no tag of its own to pin, hence the ignored rule)
# hadolint ignore=DL3006
FROM ${BASE_IMAGE} AS clone
ARG UPSTREAM_REPOSITORY=https://github.com/naver/mast3r
ARG UPSTREAM_COMMIT=f5209afc300cec36239a7ac992263f36847bbba0
# hadolint ignore=DL3008
RUN command -v git >/dev/null || { \
        apt-get update && apt-get install -y --no-install-recommends ca-certificates git && rm -rf /var/lib/apt/lists/*; }
RUN git config --global url.https://github.com/.insteadOf git@github.com: \
    && git init -q /mast3r \
    && git -C /mast3r fetch -q --depth 1 "$UPSTREAM_REPOSITORY" "$UPSTREAM_COMMIT" \
    && git -C /mast3r checkout -q FETCH_HEAD \
    && git -C /mast3r remote add origin "$UPSTREAM_REPOSITORY" \
    && git -C /mast3r submodule update --init --recursive --depth 1 \
    && find /mast3r -name .git -prune -exec rm -rf {} +

# hadolint ignore=DL3006
FROM ${BASE_IMAGE} AS upstream-published
COPY --from=clone /mast3r /upstream/opt/mast3r
SHELL ["/bin/bash", "-euo", "pipefail", "-c"]
RUN photos=$(find /upstream/opt/mast3r -type d -name NLE_tower -print -quit); \
    if [ -z "$photos" ]; then echo "the published code has no folder NLE_tower any more: set UPSTREAM_COMMIT" >&2; exit 1; fi; \
    mkdir -p /upstream/opt/mast3r-sfm/demo_data; \
    mv "$photos" /upstream/opt/mast3r-sfm/demo_data/NLE_tower

FROM scratch AS upstream-none
WORKDIR /upstream

# hadolint ignore=DL3006
FROM upstream-${UPSTREAM} AS upstream

# --- the image: what changes least comes first ------------------------------------------------------------------------
# hadolint ignore=DL3006
FROM ${BASE_IMAGE}
SHELL ["/bin/bash", "-euo", "pipefail", "-c"]
ENV PIP_DISABLE_PIP_VERSION_CHECK=1

# An environment on top of the base's: pip leaves what is there alone (it could not always uninstall what conda put
# there), ours goes first, and torch is found where it is.
RUN python -c 'import sys, torch; sys.exit(0 if sys.version_info >= (3, 11) else "BASE_IMAGE: Python >= 3.11 is needed")'; \
    python -m venv /opt/mast3r-sfm/venv; \
    python -c 'import pathlib, torch; print(pathlib.Path(torch.__file__).parents[1])' \
        >"$(/opt/mast3r-sfm/venv/bin/python -c 'import site; print(site.getsitepackages()[0])')/base-image.pth"
ENV PATH=/opt/mast3r-sfm/venv/bin:$PATH

COPY requirements.lock requirements-upstream.lock /opt/mast3r-sfm/
# The packages of the base that belong to torch become constraints: pip must not bring others.
RUN --mount=type=cache,target=/root/.cache/pip \
    python -m pip list --format=freeze | grep -E '^(torch|torchvision|torchaudio|triton|pytorch-triton)==' \
        >/opt/mast3r-sfm/base.constraints; \
    python -m pip install --constraint /opt/mast3r-sfm/base.constraints --requirement /opt/mast3r-sfm/requirements.lock

ARG UPSTREAM
COPY --from=upstream /upstream/ /
# An import that fails is said and not fatal: only the cross-check needs it, and `mast3r-sfm doctor` will say it again.
RUN --mount=type=cache,target=/root/.cache/pip \
    if [ "$UPSTREAM" = none ]; then exit 0; fi; \
    python -m pip install --constraint /opt/mast3r-sfm/base.constraints --constraint /opt/mast3r-sfm/requirements.lock \
        --requirement /opt/mast3r-sfm/requirements-upstream.lock; \
    PYTHONDONTWRITEBYTECODE=1 PYTHONPATH=/opt/mast3r:/opt/mast3r/dust3r \
        python -c 'import mast3r.model, mast3r.image_pairs, mast3r.cloud_opt.sparse_ga, dust3r.utils.image' \
        || echo "WARNING: the published code cannot be imported here; verify and --engine upstream will not work" >&2

# Any --user can run it: nothing below is written at run time but the folders that everybody may write.
RUN install -d -m 1777 /opt/mast3r-sfm/home /opt/mast3r-sfm/cache /opt/mast3r-sfm/cache/huggingface \
    /opt/mast3r-sfm/cache/triton /data
# USER: torch asks for a name, which the number given to --user does not have
ENV HOME=/opt/mast3r-sfm/home USER=mast3r-sfm PYTHONUNBUFFERED=1 \
    HF_HOME=/opt/mast3r-sfm/cache/huggingface TRITON_CACHE_DIR=/opt/mast3r-sfm/cache/triton
COPY demo_data /opt/mast3r-sfm/demo_data
RUN --mount=type=tmpfs,target=/build \
    --mount=type=bind,source=pyproject.toml,target=/build/pyproject.toml \
    --mount=type=bind,source=README.md,target=/build/README.md \
    --mount=type=bind,source=LICENSE,target=/build/LICENSE \
    --mount=type=bind,source=src,target=/build/src,rw \
    python -m pip install --no-cache-dir --no-deps --no-build-isolation /build; \
    python -c "import mast3r_sfm.app.commands"  # writes the bytecode that the base may lack: no --user could

ARG REVISION=""
LABEL org.opencontainers.image.title="mast3r-sfm" \
    org.opencontainers.image.description="Uncalibrated photos in, cameras, depth and a 3D scene out" \
    org.opencontainers.image.licenses="Apache-2.0" \
    org.opencontainers.image.revision="${REVISION}" \
    mast3r-sfm.upstream="${UPSTREAM}"
USER 1000:1000
WORKDIR /data
# as Ctrl-C: the command tidies up and ends
STOPSIGNAL SIGINT
ENTRYPOINT ["mast3r-sfm"]
CMD ["--help"]
# the container lives for one reconstruction: this is for those who keep one running
HEALTHCHECK --interval=30m --timeout=2m CMD ["mast3r-sfm", "doctor"]
