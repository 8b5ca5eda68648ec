"""A server of Google Cloud Storage's JSON and XML interface, as far as TensorFlow and TensorStore use it.

Objects lie in memory. It answers ranges, resumable and multipart uploads, listings by pages, rewrites, compositions and
generation preconditions; it can be slow and it can fail, and it counts what it is asked.
"""

import collections
import contextlib
import dataclasses
import http.server
import json
import re
import ssl
import threading
import time
import urllib.parse
from collections.abc import Callable
from typing import Any

_LISTED_AT_ONCE = 1000


@dataclasses.dataclass(frozen=True)
class Stored:
  """One generation of an object."""

  data: bytes
  generation: int
  updated: str


class StorageError(Exception):
  """An answer that is not 200."""

  def __init__(self, status: int, reason: str = ''):
    super().__init__(reason)
    self.status, self.reason = status, reason


class Store:
  """Buckets and what is in them.

  Attributes:
    objects: by bucket and name.
    latency: seconds before each answer.
    failing: given method and path it returns a status to answer with in place of the result, or None.
    counts: requests by kind (`read`, `write`, `list`, `stat`, `delete`, `copy`, `compose`).
    bytes_in, bytes_out: of objects' contents.
    writes: names of objects in the order in which they were written.
    uploads: names and bytes of what was sent, in their order.
  """

  def __init__(self, *buckets: str):
    self.objects: dict[str, dict[str, Stored]] = {bucket: {} for bucket in buckets}
    self.latency = 0.0
    self.failing: Callable[[str, str], int | None] = lambda method, path: None
    self.sessions: dict[str, tuple[str, str, dict[str, str], bytearray]] = {}
    self._lock, self._generation = threading.RLock(), 0
    self.reset_counts()

  def reset_counts(self) -> None:
    self.counts: collections.Counter[str] = collections.Counter()
    self.bytes_in = self.bytes_out = 0
    self.writes: list[str] = []
    self.uploads: list[tuple[str, int]] = []

  def names(self, prefix: str = '', bucket: str = 'bucket') -> list[str]:
    """Returns the names of objects, sorted."""
    with self._lock:
      return sorted(name for name in self.objects[bucket] if name.startswith(prefix))

  def count(self, kind: str) -> None:
    with self._lock:
      self.counts[kind] += 1

  def bucket(self, name: str) -> dict[str, Stored]:
    if name not in self.objects:
      raise StorageError(404, 'The specified bucket does not exist.')
    return self.objects[name]

  def get(self, bucket: str, name: str) -> Stored:
    with self._lock:
      if name not in self.bucket(bucket):
        raise StorageError(404, f'No such object: {bucket}/{name}')
      return self.objects[bucket][name]

  def check(self, bucket: str, name: str, conditions: dict[str, str], found: int = 412) -> None:
    """Raises unless the object has the generation that is asked for; 0 stands for no object."""
    there = self.bucket(bucket).get(name)
    generation = there.generation if there else 0
    if generation != int(conditions.get('ifGenerationMatch', generation)):
      raise StorageError(412, 'conditionNotMet')
    if generation == int(conditions.get('ifGenerationNotMatch', -1)):
      raise StorageError(found, 'conditionNotMet')

  def put(self, bucket: str, name: str, data: bytes, conditions: dict[str, str]) -> Stored:
    with self._lock:
      self.check(bucket, name, conditions)
      self._generation += 1
      self.objects[bucket][name] = Stored(
        bytes(data), self._generation, time.strftime('%Y-%m-%dT%H:%M:%S.000Z', time.gmtime())
      )
      self.writes.append(name)
      return self.objects[bucket][name]

  def delete(self, bucket: str, name: str, conditions: dict[str, str]) -> None:
    with self._lock:
      self.get(bucket, name)
      self.check(bucket, name, conditions)
      del self.objects[bucket][name]


def _describe(bucket: str, name: str, stored: Stored) -> dict[str, Any]:
  return {
    'kind': 'storage#object', 'bucket': bucket, 'name': name, 'size': str(len(stored.data)),
    'generation': str(stored.generation), 'metageneration': '1', 'updated': stored.updated,
  }  # fmt: skip


class _Handler(http.server.BaseHTTPRequestHandler):
  protocol_version = 'HTTP/1.1'
  disable_nagle_algorithm = True  # or each answer would wait 40 ms for the client's acknowledgement
  server: '_Server'

  def log_message(self, *args: Any) -> None:
    pass

  def setup(self) -> None:
    if self.server.tls is not None:  # in the thread of the connection, so that none waits for another's handshake
      self.request = self.server.tls.wrap_socket(self.request, server_side=True)
    super().setup()

  def finish(self) -> None:
    super().finish()
    if self.server.tls is not None:
      self.request.close()

  def _body(self) -> bytes:
    if self.headers.get('Transfer-Encoding') != 'chunked':  # which TensorFlow sends beside a length, and means
      return self.rfile.read(int(self.headers.get('Content-Length') or 0))
    body = bytearray()
    while size := int(self.rfile.readline(), 16):
      body += self.rfile.read(size)
      self.rfile.readline()
    self.rfile.readline()
    return bytes(body)

  def _answer(self) -> None:
    store = self.server.store
    body = self._body()
    split = urllib.parse.urlsplit(self.path)
    query = {k: v[-1] for k, v in urllib.parse.parse_qs(split.query, keep_blank_values=True).items()}
    time.sleep(store.latency)
    try:
      if status := store.failing(self.command, urllib.parse.unquote(self.path)):
        raise StorageError(status, 'made to fail')
      status, headers, result = self._route(split.path, query, body)
    except StorageError as error:
      status, headers, result = error.status, {}, {'error': {'code': error.status, 'message': error.reason}}
    data = result if isinstance(result, bytes) else json.dumps(result).encode()
    if status in (204, 304):
      data = b''
    self.send_response(status)
    for name, value in {'Content-Type': 'application/json', **headers, 'Content-Length': str(len(data))}.items():
      self.send_header(name, value)
    self.end_headers()
    if self.command != 'HEAD':
      self.wfile.write(data)

  do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _answer

  def _route(self, path: str, query: dict[str, str], body: bytes) -> tuple[int, dict[str, str], Any]:
    """Returns status, headers and body of the answer."""
    if path.startswith('/upload/session/'):
      return self._continue_upload(path.rpartition('/')[2], body)
    if found := re.fullmatch(r'/upload/storage/v1/b/([^/]+)/o', path):
      return self._upload(found[1], query, body)
    if found := re.fullmatch(r'/storage/v1/b/([^/]+)', path):
      self.server.store.bucket(found[1])
      self.server.store.count('stat')
      return 200, {}, {'kind': 'storage#bucket', 'name': found[1], 'location': 'HERE', 'locationType': 'region'}
    if found := re.fullmatch(r'/storage/v1/b/([^/]+)/o', path):
      return 200, {}, self._list(found[1], query)
    if found := re.fullmatch(r'/storage/v1/b/([^/]+)/o/([^/]+)/rewriteTo/b/([^/]+)/o/([^/]+)', path):
      source, target = ((found[i], urllib.parse.unquote(found[i + 1])) for i in (1, 3))
      self.server.store.count('copy')
      made = self.server.store.put(*target, self.server.store.get(*source).data, query)
      return 200, {}, {'done': True, 'resource': _describe(*target, made)}
    if found := re.fullmatch(r'/storage/v1/b/([^/]+)/o/([^/]+)/compose', path):
      return 200, {}, self._compose(found[1], urllib.parse.unquote(found[2]), query, body)
    if found := re.fullmatch(r'/storage/v1/b/([^/]+)/o/([^/]+)', path):
      return self._object(found[1], urllib.parse.unquote(found[2]), query, query.get('alt') == 'media')
    if found := re.fullmatch(r'/([^/]+)/(.+)', path):  # the XML interface
      return self._object(found[1], urllib.parse.unquote(found[2]), query, True)
    raise StorageError(404, f'{self.command} {path} is not known here')

  def _object(self, bucket: str, name: str, query: dict[str, str], media: bool) -> tuple[int, dict[str, str], Any]:
    store = self.server.store
    if self.command == 'DELETE':
      store.count('delete')
      store.delete(bucket, name, query)
      return 204, {}, {}
    store.count('read' if media else 'stat')
    stored = store.get(bucket, name)
    store.check(bucket, name, query, found=304)
    if not media:
      return 200, {}, _describe(bucket, name, stored)
    headers = {'Content-Type': 'application/octet-stream', 'x-goog-generation': str(stored.generation)}
    data, size, wanted = stored.data, len(stored.data), re.fullmatch(r'bytes=(\d+)-(\d*)', self.headers['Range'] or '')
    if wanted is None:
      store.bytes_out += size
      return 200, headers, data
    first, last = int(wanted[1]), min(int(wanted[2] or size - 1), size - 1)
    if first >= size:
      raise StorageError(416, 'range not satisfiable')
    store.bytes_out += last + 1 - first
    return 206, headers | {'Content-Range': f'bytes {first}-{last}/{size}'}, data[first : last + 1]

  def _list(self, bucket: str, query: dict[str, str]) -> dict[str, Any]:
    store, prefix, delimiter = self.server.store, query.get('prefix', ''), query.get('delimiter', '')
    store.count('list')
    store.bucket(bucket)
    entries: dict[str, bool] = {}  # name, and whether it is a prefix
    for name in store.names(prefix, bucket):
      end = name.find(delimiter, len(prefix)) if delimiter else -1
      entries[name if end < 0 else name[: end + len(delimiter)]] = end >= 0
    first, after, end = (query.get(name, '') for name in ('startOffset', 'pageToken', 'endOffset'))
    names = [name for name in entries if name > after and name >= first and (not end or name < end)]
    page = names[: min(int(query.get('maxResults', _LISTED_AT_ONCE)), _LISTED_AT_ONCE)]
    answer: dict[str, Any] = {'kind': 'storage#objects'}
    if objects := [name for name in page if not entries[name]]:
      answer['items'] = [_describe(bucket, name, store.get(bucket, name)) for name in objects]
    if prefixes := [name for name in page if entries[name]]:
      answer['prefixes'] = prefixes
    return answer | ({'nextPageToken': page[-1]} if len(page) < len(names) else {})

  def _compose(self, bucket: str, name: str, query: dict[str, str], body: bytes) -> dict[str, Any]:
    store, data = self.server.store, b''
    request = json.loads(body.replace(b"'", b'"'))  # TensorFlow writes it as a Python literal
    store.count('compose')
    for part in request['sourceObjects']:
      store.check(bucket, part['name'], part.get('objectPrecondition', {}))
      data += store.get(bucket, part['name']).data
    return _describe(bucket, name, store.put(bucket, name, data, query))

  def _upload(self, bucket: str, query: dict[str, str], body: bytes) -> tuple[int, dict[str, str], Any]:
    store, kind = self.server.store, query.get('uploadType', 'media')
    store.bucket(bucket)
    if kind == 'resumable':
      with store._lock:
        session = str(len(store.sessions) + 1)
        name = query.get('name') or json.loads(body)['name']
        store.sessions[session] = (bucket, name, query, bytearray())
      scheme = 'http' if self.server.tls is None else 'https'
      return 200, {'Location': f'{scheme}://{self.headers["Host"]}/upload/session/{session}'}, {}
    name = query.get('name')
    if kind == 'multipart':
      boundary = b'--' + re.search(r'boundary="?([^";]+)', self.headers['Content-Type'])[1].encode()
      _, first, second, _ = body.split(boundary)
      name = name or json.loads(first.partition(b'\r\n\r\n')[2])['name']
      body = second.partition(b'\r\n\r\n')[2].removesuffix(b'\r\n')
    return self._finish(bucket, name, body, query)

  def _finish(self, bucket: str, name: str, data: bytes, query: dict[str, str]) -> tuple[int, dict[str, str], Any]:
    store = self.server.store
    store.count('write')
    store.bytes_in += len(data)
    store.uploads.append((name, len(data)))
    return 200, {}, _describe(bucket, name, store.put(bucket, name, data, query))

  def _continue_upload(self, session: str, body: bytes) -> tuple[int, dict[str, str], Any]:
    bucket, name, query, so_far = self.server.store.sessions[session]
    wanted = re.fullmatch(r'bytes (?:(\d+)-(\d+)|\*)/(\d+|\*)', self.headers.get('Content-Range', 'bytes */*'))
    if wanted[1]:
      so_far[int(wanted[1]) :] = body
    if wanted[3] in ('*', str(len(so_far))) and (
      wanted[1] or wanted[3] != '*' or not self.headers.get('Content-Range')
    ):
      return self._finish(bucket, name, bytes(so_far or body), query)
    return 308, {'Range': f'bytes=0-{len(so_far) - 1}'} if so_far else {}, {}


class _Server(http.server.ThreadingHTTPServer):
  daemon_threads = True
  request_queue_size = 128

  def __init__(self, address: tuple[str, int], store: Store, tls: ssl.SSLContext | None):
    super().__init__(address, _Handler)
    self.store, self.tls = store, tls

  def handle_error(self, request: Any, address: Any) -> None:
    """Says nothing of connections that a killed process has left."""


@contextlib.contextmanager
def serving(store: Store, host: str, port: int = 0, tls: ssl.SSLContext | None = None):
  """Serves a store until the context ends; yields the port."""
  server = _Server((host, port), store, tls)
  thread = threading.Thread(target=server.serve_forever, kwargs={'poll_interval': 0.05}, daemon=True)
  thread.start()
  try:
    yield server.server_address[1]
  finally:
    server.shutdown()
    server.server_close()
    thread.join()
