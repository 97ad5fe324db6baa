#!/bin/sh
# What a client costs its machine: see README.md.
#
#   benches/client-manners/run.sh [FOLDER]      the folder of the built programs; default: target/release
set -eu
root=$(cd "$(dirname "$0")/../.." && pwd)
bin=${1:-${CARGO_TARGET_DIR:-$root/target}/release}
for program in undertone undertone-server undertone-client undertone-trainer; do
    [ -x "$bin/$program" ] || { echo "$bin/$program is not there: cargo build --release --bins" >&2; exit 1; }
done

work=$(mktemp -d)
server='' client=''
trap 'kill $client $server 2>/dev/null || true; wait 2>/dev/null || true; rm -rf "$work"' EXIT INT TERM
fail() {
    echo "$1" >&2
    tail -n 20 "$work"/*.log >&2
    exit 1
}
# SECONDS WHAT COMMAND...: until the command succeeds.
wait_for() {
    deadline=$(($(date +%s) + $1)) what=$2
    shift 2
    until "$@"; do
        [ "$(date +%s)" -lt "$deadline" ] || fail "$what: not in time"
        sleep 0.1
    done
}

"$bin/undertone-server" init --name manners --listen 127.0.0.1:0 --host localhost --dir "$work/d" > "$work/init.log"
"$bin/undertone-server" run --dir "$work/d" > "$work/server.log" 2>&1 &
server=$!
wait_for 30 "the coordinator listens" grep -q "listening on" "$work/server.log"
undertone() { timeout 120 "$bin/undertone" --operator "$work/d/operator" "$@"; }

# A table of 20 columns: 2000 rows.
awk 'BEGIN {
    srand(1)
    for (i = 0; i < 20; i++) printf "x%02d,", i
    print "y"
    for (n = 0; n < 2000; n++) { for (i = 0; i < 20; i++) printf "%.4f,", 2 * rand() - 1; print n % 2 }
}' > "$work/data.csv"
undertone token create --role trainer --name a --out "$work/token" > "$work/token.log"
"$bin/undertone-client" enrol --dir "$work/a" --token-file "$work/token" --data "$work/data.csv" --declared-rows 2000 > "$work/enrol.log"
sed -i 's/allow_no_privacy = false/allow_no_privacy = true/' "$work/a/client.toml"
{
    cat <<'JOB'
name = "manners"
rounds = 1
model = { kind = "mlp", hidden = [64, 64] }
training = { learning_rate = 0.1, local_steps = 1, batch_size = 64 }
cohort = { rule = "all", size = 1, min_clients = 1 }
privacy = { unit = "none" }
[data]
label = { column = "y", classes = [{ name = "no", values = ["0"] }, { name = "yes", values = ["1"] }] }
columns = [
JOB
    awk 'BEGIN { for (i = 0; i < 20; i++) printf "{ name = \"x%02d\", kind = \"number\", range = [-1, 1] },\n", i; print "]" }'
} > "$work/job.toml"

RUST_LOG=undertone_client=debug "$bin/undertone-client" run --dir "$work/a" > "$work/client.log" 2>&1 &
client=$!
connected() { undertone client list --json | grep -Eq '"connected": ?true'; }
wait_for 60 "the client is connected" connected
sleep 2
rss() { awk '/^VmRSS/ { printf "%.1f", $2 / 1000 }' "/proc/$1/status"; }
before=$(rss "$client")

# Seconds from the start of the trainer's process to the end of the first batch, by the client's own log.
first_batch() {
    awk '{ gsub(/\033\[[0-9;]*m/, ""); split($1, t, /[T:Z]/); s = t[2] * 3600 + t[3] * 60 + t[4] }
        /process has started/ { start = s }
        / trained/ && start { printf "%.2f\n", s - start; start = 0 }' "$work/client.log" | tail -n 1
}
times=''
# Child processes of the client, by the fifteen bytes that the system keeps of a name.
no_trainer() { ! pgrep -P "$client" undertone-train > /dev/null; }
for run in 1 2 3; do
    undertone job submit "$work/job.toml" --watch > "$work/job.log" 2>&1 || fail "job $run did not end well"
    times="$times $(first_batch)"
    # It leaves after 30 s without work.
    wait_for 90 "the trainer leaves" no_trainer
done
after=$(rss "$client")

echo "programs of                              $bin"
echo "idle client, resident (target < 40 MB)   $before MB before its first job, $after MB after its third"
echo "trainer's start to first batch (< 1.5 s)$times s"
awk -v before="$before" -v after="$after" -v times="$times" 'BEGIN {
    n = split(times, t, " "); bad = n < 3 || before >= 40 || after >= 40
    for (i = 1; i <= n; i++) if (t[i] >= 1.5) bad = 1
    print bad ? "NOT within the targets" : "within the targets"
    exit bad
}'
