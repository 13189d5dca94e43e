"""Exit 0 where an address of this machine answers 200: a health check for images that have no curl.

python deploy/healthy.py 8081 /healthz
"""

import http.client  # not urllib, which would send the question through a hospital's http_proxy
import sys

connection = http.client.HTTPConnection("127.0.0.1", int(sys.argv[1]), timeout=4)
try:
    connection.request("GET", sys.argv[2])
    sys.exit(connection.getresponse().status != http.client.OK)
except (OSError, http.client.HTTPException) as error:
    sys.exit(f"port {sys.argv[1]}: {error}")
