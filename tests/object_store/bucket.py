"""A bucket for tests: the server of `server.py` under the names of the real one, for processes that are started here.

The clients know their server by name and by TLS only, so a process sees names mapped to loopback (a private mount
namespace with another `/etc/hosts`) and trusts a certificate made here. Nothing leaves the machine.
"""

import contextlib
import os
import pathlib
import random
import shutil
import ssl
import subprocess
import sys
from collections.abc import Iterator, Sequence

from tests.object_store.server import Store, serving
from tests.patience import HUNG
from tests.quick_compiler import QUICK_COMPILER

NAME = 'bucket'
_HOSTS = ('www.googleapis.com', 'storage.googleapis.com', 'metadata.google.internal')


def reason_to_skip() -> str | None:
  """Returns why no process can be pointed at the server here, or None."""
  if not sys.platform.startswith('linux'):
    return 'names are mapped to loopback by mount namespaces, which Linux has'
  for tool in ('unshare', 'mount', 'openssl'):
    if shutil.which(tool) is None:
      return f'{tool} is not installed'
  if subprocess.run(['unshare', '-m', 'true'], capture_output=True).returncode:
    return 'this user may not make a mount namespace (unshare -m), without which names cannot be mapped to loopback'
  return None


class Bucket:
  """Starts processes whose `gs://bucket` is a `Store` of this one.

  Attributes:
    store: what they read and write.
  """

  def __init__(self, store: Store, folder: pathlib.Path, environment: dict[str, str]):
    self.store, self._folder, self._environment = store, folder, environment

  def start(self, arguments: Sequence[str], **options) -> subprocess.Popen:
    """Starts `python ARGUMENTS`, its output in a pipe; the process id is that of Python itself."""
    mount = f'mount --bind {self._folder}/hosts /etc/hosts && exec "$@"'
    command = ['unshare', '-m', 'sh', '-c', mount, 'sh', sys.executable, *arguments]
    environment = {**os.environ, **self._environment, **options.pop('env', {})}
    defaults = {'stdout': subprocess.PIPE, 'stderr': subprocess.STDOUT, 'text': True}
    return subprocess.Popen(command, env=environment, **{**defaults, **options})

  def run(self, arguments: Sequence[str], timeout: float = HUNG, **options) -> tuple[int, str]:
    """Runs `python ARGUMENTS`; returns its exit status and what it printed."""
    process = self.start(arguments, **options)
    try:
      output, _ = process.communicate(timeout=timeout)
    finally:  # one that hangs is not left to the tests that follow
      process.kill()
    return process.returncode, output


@contextlib.contextmanager
def open_bucket(folder: pathlib.Path) -> Iterator[Bucket]:
  """Serves an empty bucket; keeps certificate and table of hosts in a folder."""
  certificate, key = folder / 'certificate.pem', folder / 'key.pem'
  subject = ['-subj', '/CN=tests', '-addext', 'subjectAltName=' + ','.join(f'DNS:{name}' for name in _HOSTS)]
  make = ['openssl', 'req', '-x509', '-newkey', 'rsa:2048', '-nodes', '-days', '2', '-keyout', key, '-out', certificate]
  subprocess.run([*make, *subject], check=True, capture_output=True)
  tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
  tls.load_cert_chain(certificate, key)
  store = Store(NAME)
  with contextlib.ExitStack() as stack:
    # The port is the one of HTTPS, so an address of loopback that nobody else has.
    for _ in range(100):
      host = f'127.{random.randrange(1, 255)}.{random.randrange(256)}.{random.randrange(1, 255)}'
      with contextlib.suppress(OSError):
        stack.enter_context(serving(store, host, 443, tls))
        break
    port = stack.enter_context(serving(store, host))
    (folder / 'hosts').write_text('127.0.0.1 localhost\n' + ''.join(f'{host} {name}\n' for name in _HOSTS))
    environment = {
      'CURL_CA_BUNDLE': str(certificate),
      'TENSORSTORE_CA_BUNDLE': str(certificate),
      'NO_GCE_CHECK': 'true',
      'GOOGLE_AUTH_TOKEN_FOR_TESTING': 'x',
      'TENSORSTORE_GCS_HTTP_URL': f'http://{host}:{port}',
      'no_proxy': '*',
      'NO_PROXY': '*',
      # One device and little work for the compiler: neither is what is tested through a bucket.
      'XLA_FLAGS': QUICK_COMPILER,
    }
    yield Bucket(store, folder, environment)
