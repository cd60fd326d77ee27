#!/usr/bin/env bash
# Trains the bundled checkpoint from nothing: depth scenes, moge_tiny, demonstrations, their rare
# moments repeated, spear_tiny, roll-outs. Works in pieces: stops after MINUTES, the same command
# goes on where it was.
#
#   tools/train_small.sh FOLDER [MINUTES]     exit status 0 = all done, 3 = call it again
#
#   SIZE=cpu tools/train_small.sh FOLDER 150   the smaller one for two cores, planned for 150 minutes
#
# Settings by environment variables, with their defaults (those of SIZE=cpu are below):
#   PYTHON=python3    PROCESSES=<cores>   for rendering
#   SCENES=12000      pictures with depth per robot (+ HELD_OUT_SCENES=400 that are never trained on)
#   EPISODES=150      scenes per robot and family of demonstrations
#   FAMILIES=touch,push,pick,put          ROBOTS="franka widowx"
#   RELABEL=2  IMAGINED=2  CLOSE=0.3  MOMENTS=0.6   more instructions and tables per picture, see
#   doc/training.md
#   RECIPE=spear_tiny  MOGE_RECIPE=moge_tiny  PICTURES="224x168 112x112"   (external, wrist)
#   MOGE_SETTINGS=""  VLA_SETTINGS=""     further key=value of the two trainings
#   ROLLOUTS=20       episodes per robot and family at the end (validation scenes), 0 = none
#   RESULTS=          folder that gets what is worth keeping (export, curves, results)
set -uo pipefail
if [ $# -lt 1 ]; then
  sed -n '2,20p' "$0"
  exit 2
fi
out=$(mkdir -p "$1" && cd "$1" && pwd)
minutes=${2:-60}
deadline=$(($(date +%s) + 60 * minutes))
cd "$(dirname "$0")/.." || exit 2

case ${SIZE:-gpu} in
  gpu) ;;
  cpu)
    : "${SCENES:=1200}" "${HELD_OUT_SCENES:=100}" "${EPISODES:=42}" "${RELABEL:=2}" "${IMAGINED:=4}"
    : "${RECIPE:=spear_tiny_cpu}" "${MOGE_RECIPE:=moge_tiny_cpu}" "${PICTURES:=140x112 84x84}"
    ;;
  *)
    echo "SIZE=$SIZE is neither gpu nor cpu."
    exit 2
    ;;
esac
python=${PYTHON:-python3}
processes=${PROCESSES:-$(nproc)}
scenes=${SCENES:-12000}
held_out=${HELD_OUT_SCENES:-400}
episodes=${EPISODES:-150}
families=${FAMILIES:-touch,push,pick,put}
relabel=${RELABEL:-2}
imagined=${IMAGINED:-2}
close=${CLOSE:-0.3}
moments=${MOMENTS:-0.6}
recipe=${RECIPE:-spear_tiny}
moge_recipe=${MOGE_RECIPE:-moge_tiny}
read -r external wrist <<< "${PICTURES:-224x168 112x112}"
robots=${ROBOTS:-franka widowx}
rollouts=${ROLLOUTS:-20}
results=${RESULTS:-}
first_validation=1000000 # simulation/tasks.py: VALIDATION_SEEDS
export PYTHONUNBUFFERED=1 OPENBLAS_NUM_THREADS=1 PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
mkdir -p "$out/log" "$out/done"

left() { echo $((deadline - $(date +%s))); }

keep() {
  [ -n "$results" ] || return 0
  mkdir -p "$results"
  for run in moge spear; do
    for name in metrics.jsonl config.json; do
      [ -f "$out/$run/$name" ] && cp "$out/$run/$name" "$results/$run-$name"
    done
    [ -d "$out/$run/export" ] && tar -C "$out/$run" -cf "$results/$run-export.tar" export
  done
  tar -C "$out" -czf "$results/log.tar.gz" log $(cd "$out" && ls -d rollouts-* 2>/dev/null)
}

again() {
  echo "time is up in: $1; the same command goes on"
  keep
  exit 3
}

# parallel NAME COMMAND...: one process per part until the deadline; done when all parts are.
parallel() {
  local name=$1 part pids=() failed=0
  shift
  [ -e "$out/done/$name" ] && return 0
  [ "$(left)" -gt 20 ] || again "$name"
  for part in $(seq 0 $((processes - 1))); do
    OMP_NUM_THREADS=1 timeout --signal=TERM "$(($(left) - 10))" "$@" --part "$part/$processes" \
      >> "$out/log/$name-$part.log" 2>&1 &
    pids+=($!)
  done
  for part in "${pids[@]}"; do
    wait "$part"
    case $? in 0) ;; 124 | 137 | 143) failed=3 ;; *) [ $failed -eq 3 ] || failed=1 ;; esac
  done
  [ $failed -eq 3 ] && again "$name"
  if [ $failed -ne 0 ]; then
    echo "$name failed:"
    tail -n 2 "$out/log/$name"-*.log
    keep
    exit 1
  fi
  tail -qn 1 "$out/log/$name"-*.log | head -3
  touch "$out/done/$name"
}

# train NAME KIND RECIPE key=value...: until the deadline, with a checkpoint.
train() {
  local name=$1 kind=$2 recipe=$3
  shift 3
  [ -e "$out/done/$name" ] && return 0
  [ "$(left)" -gt 60 ] || again "$name"
  # Forty seconds for the start, the last checkpoint and the end.
  local tenths=$((($(left) - 40) / 6))
  $spear train "$kind" --recipe "$recipe" --out "$out/$name" "$@" \
    "max_minutes=$((tenths / 10)).$((tenths % 10))" 2>&1 | tee -a "$out/log/$name.log" | grep -v '^step' || true
  tail -n 3 "$out/log/$name.log"
  if ! grep -q '"finished": true' "$out/$name/status.json" 2>/dev/null; then
    grep -q '"finished": false' "$out/$name/status.json" 2>/dev/null && again "$name"
    echo "$name failed, see $out/log/$name.log"
    keep
    exit 1
  fi
  touch "$out/done/$name"
}

list() {
  local joined=
  for robot in $robots; do joined="$joined,$out/$1-$robot"; done
  echo "[${joined#,}]"
}

spear="$python -m spear_ros.cli.main"
for robot in $robots; do
  parallel "depth-$robot" $spear depth-scenes --robot "$robot" --seeds "0:$scenes" \
    --out "$out/depth-$robot"
  parallel "depth_held_out-$robot" $spear depth-scenes --robot "$robot" \
    --seeds "$first_validation:$((first_validation + held_out))" --out "$out/depth_held_out-$robot"
done
train moge moge "$moge_recipe" "data.scenes=$(list depth)" \
  "data.validation=$(list depth_held_out)" ${MOGE_SETTINGS:-}
for robot in $robots; do
  parallel "demonstrations-$robot" $spear demonstrations --robot "$robot" --families "$families" \
    --seeds "0:$episodes" --relabel "$relabel" --imagined "$imagined" --close "$close" --moments "$moments" \
    --external-size "$external" --wrist-size "$wrist" --shard-mb 8 --out "$out/demonstrations-$robot"
done
for robot in $robots; do
  [ -e "$out/done/moments-$robot" ] && continue
  rm -rf "$out/moments-$robot"
  # As the third weights of models/spear_tiny had them, on demonstrations with --moments.
  $python tools/repeat_moments.py "$out/demonstrations-$robot" "$out/moments-$robot" \
    --push 6 --beside 2 --held 1 || exit 1
  touch "$out/done/moments-$robot"
done
train spear vla "$recipe" "data.shards=$(list moments)" \
  "moge=$out/moge/export" ${VLA_SETTINGS:-}
if [ "$rollouts" -gt 0 ]; then
  for robot in $robots; do
    [ -e "$out/done/rollouts-$robot" ] && continue
    [ "$(left)" -gt 60 ] || again "rollouts-$robot"
    name=fr3
    [ "$robot" = widowx ] && name=wx250s
    timeout "$(left)" $spear evaluate --policy spear1 --checkpoint "$out/spear/export" \
      --robot "$name" --family "$families" --episodes "$rollouts" --seed "$first_validation" \
      --limit 20 --out "$out/rollouts-$robot" 2> "$out/log/rollouts-$robot.log" ||
      again "rollouts-$robot"
    touch "$out/done/rollouts-$robot"
  done
fi
keep
echo "all done: $out/spear/export"
