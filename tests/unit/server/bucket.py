"""A bucket of Cloud Storage on the loopback interface, as far as its XML API lists and reads objects."""

import contextlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape


class Bucket(ThreadingHTTPServer):
    """Serves `objects` (by name) as the bucket `models`; `failing` is answered instead where it is set."""

    def __init__(self, objects, failing=None):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.objects = objects
        self.failing = failing
        self.hosts = set()
        self.requests = 0

    @property
    def address(self):
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: Bucket

    def do_GET(self):
        self.server.hosts.add(self.headers["Host"])
        self.server.requests += 1
        url = urlsplit(self.path)
        _, bucket, *name = unquote(url.path).split("/", 2)
        if self.server.failing:
            self.answer(self.server.failing)
        elif name:
            body = self.server.objects.get(name[0]) if bucket == "models" else None
            self.answer(404 if body is None else 200, body or b"")
        elif bucket == "models":
            self.answer(200, self.listing(parse_qs(url.query).get("prefix", [""])[0]))
        else:
            self.answer(500)  # what fake-gcs-server says of a missing bucket

    def listing(self, prefix):
        entries = "".join(
            f"<Contents><Key>{escape(name)}</Key><Size>{len(body)}</Size><ETag>e</ETag>"
            "<LastModified>2026-11-22T12:00:00Z</LastModified></Contents>"
            for name, body in self.server.objects.items()
            if name.startswith(prefix)
        )
        return f"<ListBucketResult>{entries}</ListBucketResult>".encode()

    def answer(self, status, body=b""):
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", "e")
        self.send_header("Last-Modified", "Sun, 22 Nov 2026 12:00:00 GMT")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        """Tests speak for themselves."""


@contextlib.contextmanager
def running_bucket(objects, failing=None):
    with Bucket(objects, failing) as bucket:
        thread = threading.Thread(target=bucket.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield bucket
        finally:
            bucket.shutdown()
            thread.join()
