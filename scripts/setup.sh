#!/bin/sh
# Installs the Debian or Ubuntu packages that the build and the tests need, if any are missing. Run it as root, or as a
# user whose sudo asks for no password. Otherwise it prints the command that installs the packages, and exits with 1.
set -eu

packages="build-essential cmake pkg-config libcjson-dev libcurl4-openssl-dev libevent-dev libssl-dev libxxhash-dev
libutf8proc-dev libopenblas-dev liburing-dev libyaml-dev libcmocka-dev gnuplot-nox"

if ! command -v dpkg-query >/dev/null 2>&1; then
    echo "setup: dpkg-query is missing, so this is not Debian or Ubuntu; install the equivalents of:" $packages >&2
    exit 1
fi

missing=""
for p in $packages; do
    case "$(dpkg-query -W -f='${Status}' "$p" 2>/dev/null || true)" in
    "install ok installed") ;;
    *) missing="$missing $p" ;;
    esac
done
# Any package with libcurl's headers is accepted, and any gnuplot.
if pkg-config --exists libcurl 2>/dev/null; then missing=$(echo "$missing" | sed 's/ libcurl4-openssl-dev//'); fi
if command -v gnuplot >/dev/null 2>&1; then missing=$(echo "$missing" | sed 's/ gnuplot-nox//'); fi
[ -n "$missing" ] || exit 0

if [ "$(id -u)" = 0 ]; then
    as=""
elif sudo -n true 2>/dev/null; then
    as="sudo"
else
    echo "setup: packages are missing, and installing them needs root; run this command, then run make again:" >&2
    echo "  sudo apt-get update && sudo apt-get install -y --no-install-recommends$missing" >&2
    exit 1
fi
echo "setup: installing$missing" >&2
export DEBIAN_FRONTEND=noninteractive
log=$(mktemp)
if ! { $as apt-get update -qq && $as apt-get install -y -qq --no-install-recommends $missing; } >"$log" 2>&1; then
    tail -n 20 "$log" >&2
    echo "setup: apt-get could not install$missing; its last lines are above, its whole output is in $log" >&2
    exit 1
fi
rm -f "$log"
