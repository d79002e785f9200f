#!/bin/bash
# Starts PostgreSQL as the official image does, and makes the database the first time:
#
#   POSTGRES_USER, POSTGRES_DB, POSTGRES_PASSWORD, POSTGRES_INITDB_ARGS   or each as NAME_FILE
#   POSTGRES_HOST_AUTH_METHOD      for connections over the network; default scram-sha-256
#   PGDATA                         the data folder
#   /docker-entrypoint-initdb.d    *.sh, *.sql, *.sql.gz, *.sql.xz, *.sql.zst, run in this order
#
# Runs as root, and then becomes postgres, or as postgres. What differs from the official image: a
# first start that was cut short is known by its mark, and made again from the beginning.
set -Eeo pipefail

# In PGDATA while the database is made, locked and not empty.
mark=$PGDATA/.unfinished

say() { printf 'postgres: %s\n' "$*" >&2; }
die() { say "$*"; exit 1; }

read_file_variable() { # NAME, DEFAULT: exports NAME from itself, the file in NAME_FILE, or DEFAULT
    local file=$1_FILE
    if [ -n "${!1:-}" ] && [ -n "${!file:-}" ]; then
        die "both $1 and $file are set: leave one of them out"
    fi
    if [ -n "${!file:-}" ]; then
        [ -r "${!file}" ] || die "$file: ${!file} cannot be read"
        export "$1=$(<"${!file}")"
        unset "$file"
    else
        export "$1=${!1:-$2}"
    fi
}

read_settings() {
    read_file_variable POSTGRES_PASSWORD ''
    read_file_variable POSTGRES_USER postgres
    read_file_variable POSTGRES_DB "$POSTGRES_USER"
    read_file_variable POSTGRES_INITDB_ARGS ''
    : "${POSTGRES_HOST_AUTH_METHOD:=}"
}

# The database ------------------------------------------------------------------------------------

check_settings() {
    if [ "$POSTGRES_HOST_AUTH_METHOD" = trust ]; then
        say 'warning: POSTGRES_HOST_AUTH_METHOD=trust lets everybody in without a password'
    elif [ -z "$POSTGRES_PASSWORD" ]; then
        die 'no password: set POSTGRES_PASSWORD or POSTGRES_PASSWORD_FILE'
    fi
}

make_data_folder() { # initdb wants an empty folder, without the mark
    local new=$PGDATA/.new arguments
    eval "arguments=($POSTGRES_INITDB_ARGS)" # quotes in it are meant for a shell
    initdb --no-instructions --pgdata="$new" --username="$POSTGRES_USER" \
        --pwfile=<(printf '%s\n' "$POSTGRES_PASSWORD") "${arguments[@]}"
    mv "$new"/* "$PGDATA/"
    rmdir "$new"
    chmod 700 "$PGDATA"
    local method=${POSTGRES_HOST_AUTH_METHOD:-$(postgres -C password_encryption)}
    printf '\nhost all all all %s\n' "$method" >>"$PGDATA/pg_hba.conf"
}

psql_as_owner() { # arguments of psql; PGHOST must not lead it away from the temporary server
    PGHOST='' PGHOSTADDR='' psql --set=ON_ERROR_STOP=1 --no-psqlrc --no-password \
        --username="$POSTGRES_USER" "$@"
}

docker_process_sql() { # the official image's name, which scripts that are sourced may use
    psql_as_owner --dbname="$POSTGRES_DB" "$@"
}

make_database() {
    local there
    there=$(psql_as_owner --dbname=postgres --set=db="$POSTGRES_DB" --tuples-only --no-align \
        <<<"SELECT 1 FROM pg_database WHERE datname = :'db';")
    [ -n "$there" ] || psql_as_owner --dbname=postgres --set=db="$POSTGRES_DB" \
        <<<'CREATE DATABASE :"db";'
}

run_init_files() { # sets file, for the trap
    for file in /docker-entrypoint-initdb.d/*; do
        [ -e "$file" ] || continue
        say "running $file"
        # Not `|| die`: scripts that are sourced would go on after a failed command.
        trap 'say "$file did not end well: the next start begins anew"' EXIT
        case $file in
            *.sh) if [ -x "$file" ]; then "$file"; else . "$file"; fi ;;
            *.sql) docker_process_sql --file="$file" ;;
            *.sql.gz) gunzip --stdout "$file" | docker_process_sql ;;
            *.sql.xz) xz --decompress --stdout "$file" | docker_process_sql ;;
            *.sql.zst) zstd --decompress --stdout "$file" | docker_process_sql ;;
            *) say "passing over $file, which is no script" ;;
        esac
        trap - EXIT
    done
}

initialise() { # arguments of the server
    local server_options
    make_data_folder
    # On its socket only: nobody else may find it before it is done.
    server_options=$(printf '%q ' "$@" -c listen_addresses= -p "${PGPORT:-5432}")
    export PGPASSWORD=$POSTGRES_PASSWORD
    NOTIFY_SOCKET='' pg_ctl --pgdata="$PGDATA" --wait --options="$server_options" start
    make_database
    run_init_files
    pg_ctl --pgdata="$PGDATA" --mode=fast --wait stop
    unset PGPASSWORD
}

holds_database() { [ -s "$PGDATA/PG_VERSION" ] && ! [ -s "$mark" ]; }

prepare() { # arguments of the server
    if holds_database; then
        say "$PGDATA holds a database; nothing to make"
        return
    fi
    check_settings
    # The kernel drops this lock with its last holder, however that ends.
    exec 9>>"$mark"
    flock --nonblock 9 || die "another container is making the database in $PGDATA"
    if [ -s "$mark" ]; then
        say "the first start in $PGDATA was cut short: making the database again"
        find "$PGDATA" -mindepth 1 ! -path "$mark" -delete
    elif [ -n "$(find "$PGDATA" -mindepth 1 -maxdepth 1 ! -path "$mark")" ]; then
        rm -f "$mark"
        ! holds_database || return 0 # another container has made it meanwhile
        die "$PGDATA is not empty and holds no database: empty it, or set PGDATA to a folder in it"
    fi
    echo 'the database is being made' >&9
    sync "$PGDATA"
    initialise "$@"
    rm "$mark"
    sync "$PGDATA"
    exec 9>&-
    say 'the database is made; ready for start up'
}

make_folders() {
    mkdir -p "$PGDATA" || die "PGDATA ($PGDATA) cannot be made"
    if [ "$(id -u)" = 0 ]; then
        mkdir -p /run/postgresql
        chown postgres /run/postgresql
        chmod 3777 /run/postgresql
        # Also a volume that was copied or restored as root.
        find "$PGDATA" ! -user postgres -exec chown postgres {} +
    elif ! [ -O "$PGDATA" ]; then
        die "$PGDATA belongs to $(stat -c %U "$PGDATA") and not to $(id -un), as whom this runs"
    fi
}

wants_server() { # does a server start, or is only something about it asked?
    local argument
    [ "${1:-}" = postgres ] || return 1
    for argument; do
        case $argument in
            -'?' | --help | --describe-config | -V | --version | -C | --single) return 1 ;;
        esac
    done
}

main() {
    case ${1:-} in
        -*) set -- postgres "$@" ;;
    esac
    if wants_server "$@"; then
        make_folders
        # Before root is given up: the files may be root's alone.
        read_settings
        if [ "$(id -u)" = 0 ]; then
            exec setpriv --reuid=postgres --regid=postgres --init-groups -- "$0" "$@"
        fi
        prepare "${@:2}"
        # The server and its children need not know it.
        unset POSTGRES_PASSWORD
    fi
    exec "$@"
}

# Scripts may source this file for its functions, as they may the official one.
if [ "${BASH_SOURCE[0]}" = "$0" ]; then
    main "$@"
fi
