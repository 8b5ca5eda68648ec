"""The files of deploy/: JobSet's schema, statuses that start a run again, flags, gin files, and what is run."""

import json
import math
import os
import pathlib
import re
import runpy
import shlex
import shutil
import signal
import subprocess
import sys
import time

import jsonschema
import pytest
import setuptools
import yaml

from switch_jax import gin_files, main
from switch_jax.monitoring.interruption import EXIT_CODES
from switch_jax.parallel.mesh import mesh_shape
from switch_jax.parallel.process_group import HOST_LOST
from tests.patience import HUNG

ROOT = pathlib.Path(__file__).resolve().parent.parent
DEPLOY = ROOT / 'deploy'
AGAIN = sorted(EXIT_CODES.values())  # whenever it comes; where a host is lost, a number of times
JOBSETS = ('jobset', 'jobset_multislice')


def read_jobset(name):
  return yaml.safe_load((DEPLOY / 'gke' / f'{name}.yaml').read_text())


def slices_of(jobset):
  [slices] = jobset['spec']['replicatedJobs']
  return slices


def pod_of(jobset):
  return slices_of(jobset)['template']['spec']['template']['spec']


def train_of(jobset):
  [train] = pod_of(jobset)['containers']
  return train


def chips_of(jobset):
  """Chips of one slice."""
  return math.prod(map(int, pod_of(jobset)['nodeSelector']['cloud.google.com/gke-tpu-topology'].split('x')))


def expanded(train):
  """The arguments and the environment of a container with its $(NAME) replaced, as Kubernetes does."""
  env = {}
  for variable in train['env']:
    env[variable['name']] = re.sub(r'\$\((\w+)\)', lambda match: env[match[1]], variable['value'])
  return [re.sub(r'\$\((\w+)\)', lambda match: env[match[1]], text) for text in train['args']], env


def load(arguments):
  """Returns the run that a command line of `switch_jax.main` would train, and its flags."""
  flags, bindings = main.parse_flags(arguments)
  return gin_files.load_run(flags.gin_file, bindings, ())[0], flags


def action_on(jobset, *, exit_code=None, condition=None):
  """What JobSet does after one pod has failed, by the rules of its Job and then its own."""
  rules = slices_of(jobset)['template']['spec']['podFailurePolicy']['rules']
  reason, message = 'BackoffLimitExceeded', 'Job has reached the specified backoff limit'
  for index, rule in enumerate(rules):
    codes = rule.get('onExitCodes', {'values': []})
    if condition and {'type': condition, 'status': 'True'} in rule.get('onPodConditions', []):
      message = f'Pod default/train-0 has condition {condition} matching {rule["action"]} rule at index {index}'
    elif exit_code in codes['values']:
      message = f'Container train for pod default/train-0 failed with exit code {exit_code} matching FailJob rule'
    else:
      continue
    reason = 'PodFailurePolicy'
    break
  for rule in jobset['spec']['failurePolicy']['rules']:
    if reason in rule['onJobFailureReasons']:
      patterns = rule.get('onJobFailureMessagePatterns', [''])
      if any(re.search(pattern, message) for pattern in patterns):
        return rule['action']
  return 'RestartJobSet'


@pytest.mark.parametrize('name', JOBSETS)
class TestJobSet:
  def test_schema(self, name):
    schema = json.loads((ROOT / 'tests' / 'fixtures' / 'jobset_schema.json').read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    jobset = read_jobset(name)
    jsonschema.validate(jobset, schema)
    jobset['spec']['failurePolicy']['onJobFailureMessage'] = []
    with pytest.raises(jsonschema.ValidationError, match='onJobFailureMessage'):
      jsonschema.validate(jobset, schema)

  def test_statuses(self, name):
    jobset = read_jobset(name)
    for code in AGAIN:
      assert action_on(jobset, exit_code=code) == 'RestartJobSetAndIgnoreMaxRestarts'
    assert action_on(jobset, exit_code=137, condition='DisruptionTarget') == 'RestartJobSetAndIgnoreMaxRestarts'
    assert action_on(jobset, exit_code=1) == 'FailJobSet'
    for code in (137, 139, 13, 14):  # killed for memory, a crash; numbers in which a pattern might find 1
      assert action_on(jobset, exit_code=code) == 'RestartJobSet'
    assert jobset['spec']['failurePolicy']['maxRestarts'] > 0

  def test_what_kubernetes_asks_of_a_pod_failure_policy(self, name):
    jobset = read_jobset(name)
    assert pod_of(jobset)['restartPolicy'] == 'Never'
    job = slices_of(jobset)['template']['spec']
    assert job['backoffLimit'] == 0
    for rule in job['podFailurePolicy']['rules']:
      assert rule['action'] == 'FailJob'  # never a pod of its own: the others would wait for it
      assert ('onExitCodes' in rule) != ('onPodConditions' in rule)
      if codes := rule.get('onExitCodes'):
        assert codes['values'] == sorted(set(codes['values']))
        assert codes['containerName'] == train_of(jobset)['name']
    for rule in jobset['spec']['failurePolicy']['rules']:
      assert re.fullmatch('[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?', rule['name'])

  def test_hosts(self, name):
    jobset = read_jobset(name)
    job = slices_of(jobset)['template']['spec']
    limits = train_of(jobset)['resources']['limits']
    [wait] = pod_of(jobset)['initContainers']
    hosts = chips_of(jobset) // limits['google.com/tpu']
    assert job['completions'] == job['parallelism'] == hosts == int(wait['env'][0]['value'])
    assert job['completionMode'] == 'Indexed'
    assert jobset['spec']['network']['enableDNSHostnames']
    assert 'exclusive-topology' in str(jobset['metadata']['annotations'])

  def test_command(self, name):
    jobset = read_jobset(name)
    train = train_of(jobset)
    assert 'command' not in train  # the image's entry point
    arguments, env = expanded(train)
    run, flags = load(arguments)
    num_slices, hosts = slices_of(jobset)['replicas'], slices_of(jobset)['template']['spec']['parallelism']
    assert run.mesh.num_slices == num_slices == {'jobset': 1, 'jobset_multislice': 2}[name]
    assert run.data.num_data_shards % (num_slices * hosts) == 0
    shape = mesh_shape(run.mesh, num_slices * chips_of(jobset), run.model.moe.num_experts)
    assert math.prod(shape) == num_slices * chips_of(jobset)
    assert run.model_dir.startswith('gs://BUCKET/')
    assert env['JAX_COMPILATION_CACHE_DIR'].startswith('gs://BUCKET/')
    assert flags.coordinator_address is None  # GKE tells the hosts of each other
    assert pod_of(jobset)['terminationGracePeriodSeconds'] >= 300

  def test_images_are_placeholders(self, name):
    pod = pod_of(read_jobset(name))
    images = {container['image'] for container in [*pod['initContainers'], *pod['containers']]}
    assert images == {'REGION-docker.pkg.dev/PROJECT/REPOSITORY/switch_jax:TAG'}

  def test_waits_for_every_host(self, name, tmp_path):
    """The first answer is that there is no such host."""
    jobset = read_jobset(name)
    [wait] = pod_of(jobset)['initContainers']
    executable(tmp_path / 'getent', 'echo "$2" >> "$LOG"; [ "$(grep -c . "$LOG")" -gt 1 ]')
    executable(tmp_path / 'sleep', '')
    replicas, hosts = slices_of(jobset)['replicas'], slices_of(jobset)['template']['spec']['parallelism']
    names = {'JOBSET': jobset['metadata']['name'], 'SLICES': str(replicas), 'HOSTS': str(hosts)}
    assert {variable['name'] for variable in wait['env']} == set(names)
    subprocess.run([*wait['command'], *wait['args']], env=environment(tmp_path) | names, check=True, timeout=HUNG)
    job = f'{jobset["metadata"]["name"]}-{slices_of(jobset)["name"]}'
    expected = [f'{job}-{s}-{h}.{jobset["metadata"]["name"]}' for s in range(replicas) for h in range(hosts)]
    assert (tmp_path / 'log').read_text().split() == [expected[0], *expected]


def test_the_jobsets_differ_in_slices_only():
  one, two = (read_jobset(name) for name in JOBSETS)
  assert one['spec']['failurePolicy'] == two['spec']['failurePolicy']
  assert pod_of(one)['initContainers'] == pod_of(two)['initContainers']
  arguments = set(train_of(one)['args']) ^ set(train_of(two)['args'])
  assert {argument.split('=')[0] for argument in arguments} == {
    '--gin.MODEL_DIR',
    '--gin.config.MeshConfig.num_slices',
  }


def executable(path, script):
  path.write_text(f'#!/usr/bin/env bash\n{script}\n')
  path.chmod(0o755)


def environment(folder):
  """An environment in which programs of `folder` come first and write to its `log`."""
  return {'PATH': f'{folder}:{os.environ["PATH"]}', 'LOG': str(folder / 'log')}


@pytest.mark.parametrize('path', ['xpk.sh', 'slurm/train.sbatch'])
def test_shell_syntax(path):
  subprocess.run(['bash', '-n', DEPLOY / path], check=True)


def test_xpk(tmp_path):
  executable(tmp_path / 'xpk', 'printf "%s\\0" "$@" > "$LOG"')
  subprocess.run(['bash', DEPLOY / 'xpk.sh'], env=environment(tmp_path), check=True)
  arguments = (tmp_path / 'log').read_text().split('\0')[:-1]
  assert arguments[:2] == ['workload', 'create']
  options = dict(argument.split('=', 1) for argument in arguments[2:])
  assert sorted(map(int, options['--restart-on-exit-codes'].split(','))) == [HOST_LOST, *AGAIN]
  assert int(options['--max-restarts']) >= 100
  command = shlex.split(options['--command'])
  assert command[:4] == ['exec', 'python', '-m', 'switch_jax.main']
  run, _ = load(command[4:])
  assert run.model_dir == 'gs://BUCKET/switch_base'
  assert run.mesh.num_slices == int(options['--num-slices'])


class TestSlurm:
  @pytest.fixture
  def start(self, tmp_path):
    """Starts the script with a Slurm that runs every process here, and a Python that ends with a given status."""
    executable(
      tmp_path / 'scontrol',
      'if [ "$1" = show ]; then printf "node-3\\nnode-4\\n"; else echo "$*" >> "$(dirname "$LOG")/requeued"; fi',
    )
    executable(
      tmp_path / 'srun',
      """while [[ "$1" == --* ]]; do echo "$1" >> "$LOG.srun"; shift; done
      for ((i = 0; i < SLURM_NTASKS; i++)); do SLURM_PROCID=$i "$@" & pids+=($!); done
      trap 'kill -TERM "${pids[@]}"' TERM
      for pid in "${pids[@]}"; do
        wait "$pid"; status=$?
        while kill -0 "$pid" 2> /dev/null; do wait "$pid"; status=$?; done
      done
      exit "$status\"""",
    )
    executable(
      tmp_path / 'python',
      """trap 'sleep 0.3; exit 143' TERM
      printf "%s\\n" "$@" > "$LOG.$SLURM_PROCID.new"; mv "$LOG.$SLURM_PROCID.new" "$LOG.$SLURM_PROCID"
      if [ "$STATUS" = wait ]; then while :; do sleep 0.05; done; fi
      exit "$STATUS\"""",
    )

    def start(status, *arguments):
      slurm = {'SLURM_JOB_ID': '61234', 'SLURM_JOB_NODELIST': 'node-[3-4]', 'SLURM_NTASKS': '2'}
      env = {**os.environ, **environment(tmp_path), **slurm, 'STATUS': str(status)}
      return subprocess.Popen(['bash', DEPLOY / 'slurm' / 'train.sbatch', *arguments], env=env)

    return start

  def test_what_is_started(self, start, tmp_path):
    assert start(0, '--gin.TRAIN_STEPS=7').wait(HUNG) == 0
    for process in range(2):
      module, *arguments = (tmp_path / f'log.{process}').read_text().splitlines()[1:]
      assert module == 'switch_jax.main'
      run, flags = load(arguments)
      assert (flags.coordinator_address, flags.num_processes, flags.process_id) == ('node-3:21234', 2, process)
      assert run.train_steps == 7
      assert run.data.num_data_shards % 2 == 0
    assert '--kill-on-bad-exit=0' in (tmp_path / 'log.srun').read_text()
    assert not (tmp_path / 'requeued').exists()

  @pytest.mark.parametrize('restarts', [0, 10])
  @pytest.mark.parametrize('status', [*AGAIN, HOST_LOST, 137, 1, 139])
  def test_statuses(self, start, tmp_path, monkeypatch, status, restarts):
    """A host is not lost for ever: it may be memory."""
    monkeypatch.setenv('SLURM_RESTART_COUNT', str(restarts))
    assert start(status).wait(HUNG) == status
    assert (tmp_path / 'requeued').exists() == (status in AGAIN or (status in (HOST_LOST, 137) and not restarts))

  def test_sigterm_lets_all_save_and_queues_again(self, start, tmp_path):
    script = start('wait')
    deadline = time.monotonic() + HUNG
    while not all((tmp_path / f'log.{process}').exists() for process in range(2)):
      assert time.monotonic() < deadline
      time.sleep(0.02)
    script.send_signal(signal.SIGTERM)
    assert script.wait(HUNG) == 143
    assert (tmp_path / 'requeued').read_text() == 'requeue 61234\n'

  def test_options(self):
    options = re.findall('^#SBATCH (.*)$', (DEPLOY / 'slurm' / 'train.sbatch').read_text(), re.M)
    assert {'--signal=B:TERM@120', '--requeue', '--ntasks-per-node=1'} <= set(options)


class TestDockerfile:
  @pytest.fixture
  def instructions(self):
    lines = (DEPLOY / 'Dockerfile').read_text().splitlines()
    return [tuple(line.split(maxsplit=1)) for line in lines if line and not line.startswith('#')]

  def copied(self, instructions):
    return [source for name, rest in instructions if name == 'COPY' for source in rest.split()[:-1]]

  def test_base_and_entry_point(self, instructions):
    assert instructions[0] == ('FROM', 'python:3.11-slim')
    found = dict(instructions)
    assert json.loads(found['ENTRYPOINT']) == ['python', '-m', 'switch_jax.main']
    assert ('ARG', 'USER_NAME=trainer') in instructions
    assert found['USER'] == '${USER_NAME}'

  def test_what_is_copied_is_sent_and_enough(self, instructions, tmp_path, monkeypatch):
    sources = self.copied(instructions)
    sent = (DEPLOY / 'Dockerfile.dockerignore').read_text().splitlines()
    assert {line[1:] for line in sent if line.startswith('!')} == set(sources)
    for source in sources:
      path = ROOT / source
      assert path.exists()
      copy = shutil.copytree if path.is_dir() else shutil.copy
      copy(path, tmp_path / source)
    command = [sys.executable, 'setup.py', '--quiet', 'build', '--build-base', 'built']
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, timeout=HUNG)
    assert (tmp_path / 'built/lib/switch_jax/main.py').exists()
    assert (tmp_path / 'built/lib/switch_jax/share/gin/models/switch_base.gin').exists()

  def test_extras(self, instructions, monkeypatch):
    handed = {}
    monkeypatch.setattr(setuptools, 'setup', lambda **arguments: handed.update(arguments))
    runpy.run_path(str(ROOT / 'setup.py'))
    [extras] = [rest.removeprefix('EXTRAS=') for name, rest in instructions if rest.startswith('EXTRAS=')]
    assert set(extras.split(',')) <= set(handed['extras_require'])
    [pip] = [rest for name, rest in instructions if name == 'RUN' and rest.startswith('pip')]
    assert '".[${EXTRAS}]"' in pip


def test_readme_names_every_file():
  text = (DEPLOY / 'README.md').read_text()
  for path in DEPLOY.rglob('*'):
    if path.is_file() and path.name not in ('README.md', 'Dockerfile.dockerignore'):
      assert f'`{path.relative_to(DEPLOY)}`' in text
