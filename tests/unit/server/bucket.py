"""A bucket on the loopback interface, as far as the XML API of Cloud Storage and of S3 lists, reads and writes
objects.
"""

import contextlib
import hashlib
import re
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
        self.breaking = 0  # so many answers end in the middle of the object
        self.tagging = True  # whether the listing has e-tags
        self.listings = 0
        self.ranges = []  # (name, Range) of each object that was asked for
        self.hosts = set()
        self.open = threading.Event()  # cleared, objects but model.yaml stop in the middle
        self.open.set()
        self.stopped = threading.Semaphore(0)  # counts the answers that wait for `open`

    @property
    def address(self):
        return f"http://127.0.0.1:{self.server_address[1]}"

    @property
    def names(self):
        """The objects that were asked for, in order."""
        return [name for name, _ in self.ranges]


class _Handler(BaseHTTPRequestHandler):
    server: Bucket

    def do_GET(self):
        self.server.hosts.add(self.headers["Host"])
        url = urlsplit(self.path)
        _, bucket, *name = unquote(url.path).split("/", 2)
        if self.server.failing:
            self.answer(self.server.failing)
        elif name:
            self.server.ranges.append((name[0], self.headers["Range"]))
            body = self.server.objects.get(name[0]) if bucket == "models" else None
            self.answer_object(name[0], body)
        elif bucket == "models":
            self.server.listings += 1
            self.answer(200, self.listing(parse_qs(url.query).get("prefix", [""])[0]))
        else:
            self.answer(500)  # what fake-gcs-server says of a missing bucket

    def do_POST(self):
        """An upload by the JSON API, which is what emulators take."""
        [name] = parse_qs(urlsplit(self.path).query)["name"]
        self.server.objects[name] = self.rfile.read(int(self.headers["Content-Length"]))
        self.answer(200)

    def listing(self, prefix):
        entries = "".join(
            f"<Contents><Key>{escape(name)}</Key><Size>{len(body)}</Size>{self.tag(body)}"
            "<LastModified>2026-11-22T12:00:00Z</LastModified></Contents>"
            for name, body in sorted(self.server.objects.items())
            if name.startswith(prefix)
        )
        return f"<ListBucketResult>{entries}</ListBucketResult>".encode()

    def tag(self, body):
        return f"<ETag>{digest(body)}</ETag>" if self.server.tagging else ""

    def answer_object(self, name, body):
        if body is None:
            self.answer(404)
            return
        headers = {"ETag": digest(body), "Last-Modified": "Sun, 22 Nov 2026 12:00:00 GMT"}
        wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers["Range"] or "")
        if wanted is None:
            self.answer(200, body, headers, name)
            return
        start, last = int(wanted[1]), min(int(wanted[2]), len(body) - 1)
        headers["Content-Range"] = f"bytes {start}-{last}/{len(body)}"
        self.answer(206, body[start : last + 1], headers, name)

    def answer(self, status, body=b"", headers=None, name="model.yaml"):
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.end_headers()
        half = memoryview(body)[: len(body) // 2]
        if not name.endswith("model.yaml"):
            self.wfile.write(half)
            if self.server.breaking:
                self.server.breaking -= 1
                self.close_connection = True
                return
            if not self.server.open.is_set():
                self.server.stopped.release()
                self.server.open.wait()
            body = memoryview(body)[len(half) :]
        with contextlib.suppress(ConnectionError):  # of a client that was killed
            self.wfile.write(body)

    def log_message(self, *_):
        """Tests speak for themselves."""


def digest(body):
    return hashlib.md5(body, usedforsecurity=False).hexdigest()


@contextlib.contextmanager
def running_bucket(objects, failing=None):
    with Bucket(objects, failing) as bucket:
        thread = threading.Thread(target=bucket.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield bucket
        finally:
            bucket.open.set()
            bucket.shutdown()
            thread.join()
