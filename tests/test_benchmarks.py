import json

from conftest import REPOSITORY, run, write_yml


def test_train_speed_writes_its_figures(train_opt, tmp_path):
    option_file = write_yml(train_opt, tmp_path / 'opt.yml')
    script = REPOSITORY / 'benchmarks' / 'train_speed.py'
    out = tmp_path / 'results' / 'tiny.json'
    done = run(script, '-opt', option_file, '--iterations', '4', '--random-teacher', '--out', out, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    result = json.loads(out.read_text())
    assert result['iterations'] == 4
    assert result['seconds_per_iteration_median'] > 0 and result['peak_memory_gib'] > 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ['opt.yml', 'results']
    few = run(script, '-opt', option_file, '--iterations', '2', '--out', out, cwd=tmp_path)
    assert few.returncode == 2 and '--iterations: 2; accepted: more than 2' in few.stderr
