#!/usr/bin/env bash
# A throw-away Slurm cluster on this machine's loopback, for tests. README.md beside this file says how to use it.
set -euo pipefail
umask 022
LAB=$(realpath -m "${SLURM_LAB:-${TMPDIR:-/tmp}/attrflow-slurm}")
NODES=${NODES:-3} CPUS=${CPUS:-2} MEM=${MEM:-2000} GPUS=${GPUS:-0}
BASE_PORT=${BASE_PORT:-16817} NODE_TIMEOUT=${NODE_TIMEOUT:-10} MINJOBAGE=${MINJOBAGE:-300}
export SLURM_CONF=$LAB/etc/slurm.conf

say() { echo "slurm lab: $*" >&2; }
fail() { say "$*"; exit 1; }

# within SECONDS COMMAND...: repeats the command until it succeeds.
within() {
  local end=$((SECONDS + $1)); shift
  until "$@" >/dev/null 2>&1; do
    [ "$SECONDS" -lt "$end" ] || return 1
    sleep 0.1
  done
}

# ---- processes ----------------------------------------------------------------------------------
# writers PROCESS...: those of the folders /proc/NUMBER whose process has a log of this lab open. All daemons have.
# It looks at what a process does now, so a number that another process has taken over does not count.
writers() { find "${@/%//fd}" -lname "$LAB/log/*" -printf '%h\n' 2>/dev/null | xargs -r dirname | sort -u; }

# running NAME: the number of the daemon munged, slurmctld or of a node; fails if it does not run.
running() {
  local pid
  pid=$(cat "$LAB/run/$1.pid" 2>/dev/null) && [ -n "$(writers "/proc/${pid:-0}")" ] && echo "$pid"
}
stopped() { ! running "$1"; }

# members: the numbers of all processes of this lab: daemons, jobs, and the children of both.
members() {
  local process roots=()
  for process in $(writers /proc/[0-9]*); do
    case $(cat "$process/comm" 2>/dev/null) in munged | slurm*) roots+=("${process#/proc/}") ;; esac
  done
  # A job that lost its slurmstepd is known by its environment.
  while read -r process; do
    if grep -qzs '^SLURM_JOB_ID=' "$process"; then process=${process%/*}; roots+=("${process#/proc/}"); fi
  done < <(grep -lzsxF "SLURM_CONF=$SLURM_CONF" /proc/[0-9]*/environ)
  ps -eo pid=,ppid=,stat= | awk -v roots="${roots[*]}" '
    BEGIN { n = split(roots, r); for (i = 1; i <= n; i++) mine[r[i]] }
    $3 !~ /^Z/ { parent[$1] = $2 }
    END {
      do { more = 0; for (p in parent) if (!(p in mine) && parent[p] in mine) { mine[p]; more = 1 } } while (more)
      for (p in mine) if (p in parent) print p
    }'
}

# launch NAME COMMAND...: runs a command that leaves a daemon behind, and waits for the daemon.
launch() {
  local name=$1; shift
  if running "$name" >/dev/null; then say "$name runs already"; return; fi
  rm -f "$LAB/run/$name.pid"
  env -i PATH="$PATH:/usr/sbin" SLURM_CONF="$SLURM_CONF" "$@" </dev/null >>"$LAB/log/start" 2>&1 ||
    fail "$name cannot start; see $LAB/log"
  within 15 running "$name" || fail "$name did not start; see $LAB/log"
}

# halt NAME SIGNAL
halt() {
  local pid
  pid=$(running "$1") || { say "$1 does not run"; return; }
  kill "-$2" "$pid"
  within 15 stopped "$1" || fail "$1 ($pid) does not end"
}

# ---- commands -----------------------------------------------------------------------------------
install() {
  local package missing=() policy=/usr/sbin/policy-rc.d made='' status=0
  for package in slurmctld slurmd slurm-client munge; do
    dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
  done
  [ ${#missing[@]} -gt 0 ] || return 0
  say "installing ${missing[*]}"
  # Keeps the packages from starting daemons of their own.
  if [ ! -e $policy ]; then made=1; printf '#!/bin/sh\nexit 101\n' >$policy; chmod 755 $policy; fi
  apt-get update -qq >&2 || say "could not update the list of packages"
  DEBIAN_FRONTEND=noninteractive \
    apt-get install -y -qq --no-install-recommends "${missing[@]}" </dev/null >&2 || status=$?
  if [ -n "$made" ]; then rm -f $policy; fi
  [ $status = 0 ] || fail "could not install ${missing[*]}"
}

configure() {
  local host i has="CPUs=$CPUS RealMemory=$MEM"
  host=$(hostname -s)
  getent ahostsv4 "$host" | grep -q '^127\.' || say "warning: $host is not a loopback address; srun may not work"
  (umask 077; head -c 256 /dev/urandom >"$LAB/etc/munge.key")
  # Slurm asks for this file although nothing here uses cgroups.
  echo "CgroupAutomount=no" >"$LAB/etc/cgroup.conf"
  # A pretended GPU is another /dev/null. CUDA_VISIBLE_DEVICES gets the number that its name ends in.
  for ((i = 0; i < GPUS; i++)); do
    mknod "$LAB/etc/gpu$i" c 1 3
    echo "Name=gpu File=$LAB/etc/gpu$i"
  done >"$LAB/etc/gres.conf"
  cat >"$SLURM_CONF" <<END
ClusterName=attrflow
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$BASE_PORT
SlurmUser=root
SlurmdUser=root
# Daemons listen on the addresses named here only, not on all of the machine's.
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
# A requeued job waits until its old credential has expired, by default for two minutes.
AuthInfo=socket=$LAB/run/munge.sock,cred_expire=5
StateSaveLocation=$LAB/state
SlurmctldPidFile=$LAB/run/slurmctld.pid
SlurmctldLogFile=$LAB/log/slurmctld
SlurmdPidFile=$LAB/run/%n.pid
SlurmdLogFile=$LAB/log/%n
SlurmdSpoolDir=$LAB/state/%n
# Nothing below needs cgroups or a database.
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
# Nodes may advertise more than the machine has.
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
DefMemPerCPU=$((MEM / CPUS / 2))
# Jobs start at once.
SchedulerParameters=batch_sched_delay=1,sched_min_interval=100000,bf_interval=2
MessageTimeout=5
SlurmctldTimeout=10
SlurmdTimeout=$NODE_TIMEOUT
KillWait=5
OverTimeLimit=0
ReturnToService=2
JobRequeue=1
MaxArraySize=1001
MinJobAge=$MINJOBAGE
END
  if [ "$GPUS" -gt 0 ]; then has+=" Gres=gpu:$GPUS"; echo "GresTypes=gpu" >>"$SLURM_CONF"; fi
  for ((i = 1; i <= NODES; i++)); do
    echo "NodeName=node$i NodeHostname=$host NodeAddr=127.0.0.1 Port=$((BASE_PORT + i)) $has"
  done >>"$SLURM_CONF"
  cat >>"$SLURM_CONF" <<END
PartitionName=debug Nodes=ALL Default=YES DefaultTime=10 MaxTime=INFINITE
PartitionName=short Nodes=ALL MaxTime=1
${EXTRA_CONF:-}
END
}

start_controller() {
  launch slurmctld slurmctld
  within 15 scontrol ping || fail "slurmctld does not answer; see $LAB/log/slurmctld"
}

all_idle() { [ "$(sinfo -h -p debug -t idle -o %D)" = "$NODES" ]; }

up() {
  local i
  [ -z "$(members)" ] || fail "already up in $LAB; '$0 down' ends it"
  [ ! -e "$LAB" ] || [ -e "$SLURM_CONF" ] || rmdir "$LAB" || fail "$LAB is in use for something else"
  rm -rf "$LAB"
  mkdir -p "$LAB"/{etc,log,run,state}
  trap 'tail -n 5 "$LAB"/log/* >&2; down' EXIT
  configure
  launch munged munged --key-file="$LAB/etc/munge.key" --seed-file="$LAB/state/munge.seed" \
    --socket="$LAB/run/munge.sock" --pid-file="$LAB/run/munged.pid" --log-file="$LAB/log/munged"
  start_controller
  for ((i = 1; i <= NODES; i++)); do launch "node$i" slurmd -N "node$i"; done
  within 30 all_idle || fail "some nodes do not become idle"
  trap - EXIT
  printf 'export SLURM_CONF=%q\nexport SLURM_LAB=%q\n' "$SLURM_CONF" "$LAB"
}

down() {
  local pids i
  for ((i = 0; i < 100; i++)); do
    mapfile -t pids < <(members)
    if [ ${#pids[@]} = 0 ]; then say "nothing runs in $LAB"; return; fi
    kill -KILL "${pids[@]}" 2>/dev/null || true
    sleep 0.1
  done
  fail "these processes do not end: ${pids[*]}"
}

usage="usage: $0 install | up | down | stop-controller | kill-controller | start-controller |
                  kill-node NODE | start-node NODE | down-node NODE | resume-node NODE"
[ "$(id -u)" = 0 ] || fail "run this as root, as slurmd does not work for other users"
case ${1:-} in *-node) grep -qs "^NodeName=${2:-} " "$SLURM_CONF" || fail "no node '${2:-}' in $LAB" ;; esac
case ${1:-} in
  install) install ;;
  up) install; up ;;
  down) down ;;
  stop-controller) halt slurmctld TERM ;;
  kill-controller) halt slurmctld KILL ;;
  start-controller) start_controller ;;
  kill-node) halt "$2" KILL ;;
  start-node) launch "$2" slurmd -N "$2" ;;
  down-node) scontrol update "nodename=$2" state=down reason=test ;;
  resume-node) ! sinfo -h -n "$2" -o %T | grep -qE 'down|drain' || scontrol update "nodename=$2" state=resume ;;
  *) fail "$usage" ;;
esac
