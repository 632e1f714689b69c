#!/usr/bin/env bash
# Makes src/mast3r_sfm/export/report/assets/three.min.js, the parts of three.js that report.html needs, and copies its
# licence. Needs npm and the network; the result is committed, so that nobody else needs them.
set -euo pipefail

three_version=0.187.0
esbuild_version=0.28.2
repository=$(cd "$(dirname "$0")/.." && pwd)
assets="$repository/src/mast3r_sfm/export/report/assets"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

cp "$repository/scripts/three_parts.js" "$work"
cd "$work"
npm install --no-save --no-audit --no-fund --silent "three@$three_version" "esbuild@$esbuild_version"
./node_modules/.bin/esbuild three_parts.js --bundle --minify --format=iife --global-name=THREE --target=es2020 \
    --charset=ascii --legal-comments=none --banner:js="/* three.js $three_version, MIT licence, see three.LICENSE */" \
    --outfile="$assets/three.min.js"
cp node_modules/three/LICENSE "$assets/three.LICENSE"
