# Sourced by the scripts that need a BuildGrid: its installation, its start with a database, and two longshores that work
# for it. Wants tests/lib.sh, a scratch folder and, in $version, which BuildGrid; everything of one lies in $scratch/$version.
#
# BuildGrid is installed from PyPI below target/, PostgreSQL from Debian; all of it runs on 127.0.0.1, on free ports.

buildgrid_start_s_max=60

# buildgrid_packages: what it needs of Debian.
buildgrid_packages() { packages postgresql python3-venv; }

# install_buildgrid VERSION: BuildGrid below target/, with the versions of its requirements.
install_buildgrid() {
  venv=$work/buildgrid-$1
  cmp -s "$repo/tests/buildgrid/requirements-$1.txt" "$venv/requirements.txt" && return 0
  say "installing BuildGrid $1 from PyPI below target/tests/buildgrid-$1"
  rm -rf "$venv"
  { /usr/bin/python3 -m venv "$venv" && "$venv/bin/pip" install --disable-pip-version-check --no-input \
    --requirement "$repo/tests/buildgrid/requirements-$1.txt"; } > "$work/pip.log" 2>&1 || { tail -n 20 "$work/pip.log"; return 1; }
  cp "$repo/tests/buildgrid/requirements-$1.txt" "$venv/requirements.txt"
}

# as_postgres COMMAND...: PostgreSQL refuses to run as root.
as_postgres() {
  if [ "$(id -u)" -eq 0 ]; then runuser -u postgres -- "$@"; else "$@"; fi
}

# start_postgres FOLDER: a database cluster there with a database bgd; leaves $database_port.
start_postgres() {
  local folder=$1 bin
  bin=$(ls -d /usr/lib/postgresql/*/bin | sort -V | tail -n 1)
  database_port=$(free_port)
  mkdir "$folder"
  [ "$(id -u)" -ne 0 ] || chown postgres "$folder"
  (cd "$folder" && as_postgres "$bin/initdb" --pgdata="$folder/data" --username=bgd --auth=trust) \
    > "$folder.log" 2>&1 || { cat "$folder.log"; die "initdb failed"; }
  # The postmaster is the process that is ended: as another user, it is started through one that passes signals on.
  local command=("$bin/postgres" -D "$folder/data" -p "$database_port" -k "$folder" -c listen_addresses=127.0.0.1
    -c fsync=off -c max_connections=200)
  [ "$(id -u)" -ne 0 ] || command=(setpriv --reuid=postgres --regid=postgres --init-groups "${command[@]}")
  start "$folder.log" "${command[@]}"
  wait_for_port "$database_port" 30 "$started" || { cat "$folder.log"; die "PostgreSQL did not start"; }
  as_postgres "$bin/createdb" --host=127.0.0.1 --port="$database_port" --username=bgd bgd
}

# settings CONNECTION SCHEDULER-LINE...: the part of a configuration that both versions have in common.
settings() {
  cat <<END
server:
  - !channel {address: "127.0.0.1:$port", insecure-mode: true}
authorization: {method: none}
monitoring: {enabled: false}
connections:
  - !sql-connection &sql {connection-string: "$1", pool-size: 20, max-overflow: 20}
storages:
  - !disk-storage &cas {path: $scratch/cas-$version}
caches:
  - !lru-action-cache &ac
    {storage: *cas, max-cached-refs: 100000, allow-updates: true, cache-failed-actions: false}
schedulers:
  - !sql-scheduler &scheduler
    sql: *sql
    storage: *cas
    action-cache: *ac
    poll-interval: 0.05
    bot-session-keepalive-timeout: 60
    session-expiry-timer-interval: 2
    max-job-attempts: 5
    property-set: !dynamic-property-set
      match-property-keys: [OSFamily, ISA, pool]
      wildcard-property-keys: [container-image]
END
  shift
  printf '    %s\n' "$@"
  cat <<END
instances:
  - name: ""
    services:
      - !action-cache {cache: *ac}
      - !execution {scheduler: *scheduler, operation-stream-keepalive-timeout: 60}
      - !cas {storage: *cas}
      - !bytestream {storage: *cas}
thread-pool-size: 100
END
}

# start_buildgrid: the server of $version; leaves $port and $buildgrid_pid.
start_buildgrid() {
  local folder=$scratch/$version
  port=$(free_port)
  mkdir "$folder"
  case "$version" in
    0.4.4)
      start_postgres "$scratch/postgres"
      local connection=postgresql://bgd@127.0.0.1:$database_port/bgd
      # The driver that psycopg2 is, not the newer one: with that, no wake-up arrives.
      settings "${connection/postgresql:/postgresql+psycopg2:}" "bot-poll-interval: 0.05" "assigners:" \
        "  - !priority-age-assigner {count: 2, interval: 0.05, jitter-factor: 0.05, failure-backoff: 0.2}" \
        > "$folder/bgd.yml"
      "$venv/bin/bgd" migrate apply "$connection" > "$folder/migrate.log" 2>&1 \
        || { tail "$folder/migrate.log"; die "bgd migrate failed"; }
      ;;
    0.2.0)
      local connection=sqlite:///$folder/bgd.db
      settings "$connection" "job-assignment-interval: 0.05" > "$folder/bgd.yml"
      "$venv/bin/python" - "$connection" <<'END' || die "cannot create the tables"
import sys
from sqlalchemy import create_engine
from buildgrid.server.sql.models import Base
Base.metadata.create_all(create_engine(sys.argv[1]))
END
      ;;
  esac
  start_server
}

# start_server: the same one again, with what it had stored.
start_server() {
  start "$scratch/$version/bgd.log" env -C "$scratch/$version" "$venv/bin/bgd" server start -v "$scratch/$version/bgd.yml"
  buildgrid_pid=$started
  wait_for_port "$port" "$buildgrid_start_s_max" "$buildgrid_pid" \
    || { tail -n 20 "$scratch/$version/bgd.log"; die "BuildGrid $version did not start"; }
}

# start_workers: two of them; leaves $workers.
start_workers() {
  sed -e "s|^endpoint = .*|endpoint = \"grpc://127.0.0.1:$port\"|" -e '/^root = /d' "$repo/deploy/bots.toml" \
    > "$scratch/$version/worker.toml"
  workers=()
  local number
  for number in 1 2; do
    LONGSHORE_LOG=info,longshore_worker::frontend::pump=debug \
      start_worker "$scratch/$version/worker-$number" "$scratch/$version/worker.toml" --jobs 2
    workers+=("$started")
  done
}
