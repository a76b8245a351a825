#!/bin/sh
# Runs a command, and says every 20 seconds that it still runs: installers and compilers can be silent for minutes.
#   still-running.sh WHAT COMMAND...
what=$1
shift
start=$(date +%s)
(
    next=20
    while sleep 1 && kill -0 $$ 2>/dev/null; do
        seconds=$(($(date +%s) - start))
        if [ "$seconds" -ge "$next" ]; then
            echo "$what: $seconds s" >&2
            next=$((seconds + 20))
        fi
    done
) &
beat=$!
trap 'kill $beat 2>/dev/null' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
"$@"
