#!/bin/sh
# Start Redis with the password of the Secret: in a file that only this process reads, not among its arguments, where
# every process of the node could see it.
#   start-store.sh REDIS.CONF FOLDER
set -eu
configuration=$1
private=$2
: "${REDISCLI_AUTH:?the key password of the Secret penstock-store is missing}"
umask 077
{
    printf 'include "%s"\n' "$configuration"
    printf 'requirepass "%s"\n' "$(printf '%s' "$REDISCLI_AUTH" | sed 's/[\\"]/\\&/g')"
} > "$private/redis.conf"
exec redis-server "$private/redis.conf"
