# The rest is the same in every job: pipeline/slurm/job.sh. One attempt of the job: it forwards signals to hornbook, which
# saves and exits with 75, and the script asks for another attempt, unless Slurm gives one or has ended the job for good.
set -u
job=$SLURM_JOB_ID config=${configs[0]}
if [ -n "${SLURM_ARRAY_JOB_ID:-}" ]; then  # one task's SLURM_JOB_ID names the whole array
  job=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID config=${configs[$SLURM_ARRAY_TASK_ID]}
fi
code=0 child='' signals=0 first_signal=''

say() { printf '%(%FT%T)T job %s, attempt %d: %s\n' -1 "$job" $((${SLURM_RESTART_COUNT:-0} + 1)) "$*"; }

ask() { timeout 20 squeue --noheader --jobs="$job" --format="$1" 2>/dev/null; }

seconds() {  # of Slurm's [days-][hours:]minutes:seconds; nothing for UNLIMITED and the like
  awk -F '[-:]' '/^[0-9:-]+$/ { days = index($0, "-") ? $1 : 0; s = 0
    for (i = index($0, "-") ? 2 : 1; i <= NF; i++) s = 60 * s + $i
    print 86400 * days + s }' <<< "$1"
}

forward() {
  signals=$((signals + 1)) first_signal=${first_signal:-$1}
  if [ -n "$child" ] && [ "$1 ${launch[*]:+srun}" != 'TERM srun' ]; then  # TERM makes srun kill; Slurm tells its steps
    kill -s "$1" "$child" 2>/dev/null
  fi
  say "SIG$1, time left $(ask %L)"
}

run() {  # hornbook "$@", to its end; signals interrupt the waiting, not the work
  ${launch[@]+"${launch[@]}"} "$python" -P -m pipeline "$@" &
  child=$!
  local seen=-1
  while [ "$seen" != "$signals" ]; do
    seen=$signals
    wait "$child"
    code=$?
  done
  child=''
  # Ended by a signal before it could install a handler: there was nothing to save. Or bash 5.2 lost the code (-1) of a
  # child that ended while a trap ran: the same command again does what is left to do, which may be nothing.
  if [ -n "$first_signal" ]; then case "$code" in 138 | 143 | -1) code=75 ;; esac; fi
}

another_attempt() {
  local state
  state=$(ask '%T %r')
  case "$first_signal $state" in
    'TERM RUNNING '*) say 'stopped by hand; hornbook submit resumes it' ;;
    *' RUNNING '* | *' TimeLimit' | ' ' | 'USR1 ')
      if scontrol requeue "$job"; then say 'requeued'; else say 'not requeued; hornbook submit resumes it'; fi ;;
    *) say "left to Slurm (${state:-gone from the queue})" ;;
  esac
}

trap 'forward USR1' USR1
trap 'forward TERM' TERM
left=$(seconds "$(ask %L)")
say "on $(hostname), time left ${left:-unlimited}${left:+ s}"
if [ -n "$left" ] && [ "$left" -le "$notice_seconds" ]; then
  say "the time limit leaves less than the notice of $notice_seconds s: submit with a longer --time or a smaller --notice"
  exit 2
fi
for verb in "${verbs[@]}"; do
  if [ -n "$first_signal" ]; then code=75; break; fi
  say "hornbook $verb $config"
  run "$verb" "$config"
  [ "$code" = 0 ] || break
done
say "exit code $code"
[ "$code" != 75 ] || another_attempt
exit "$code"
