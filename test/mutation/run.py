#!/usr/bin/env python3
"""Puts deliberate faults into the library, one at a time, and sees whether the tests notice.

    test/mutation/run.py [--check] [--list] [--from N] [--to N] [--only NAME...] [--again] [--same-tree] [--jobs N] [--minutes M]

Works on a copy of the tree, build/mutants/tree, so that a fault costs one or two compilations and the links of the tests
it names. For each fault: those tests; if they pass, all unit, catalogue, conformance and injection tests. What was
found is kept in build/mutants/results, so a run can be cut into slices; the table shows all of it.

Exit status: 0 all caught; 1 a fault survived; 2 a fault does not apply any more, or the tests fail without a fault.
"""

import argparse
import concurrent.futures
import hashlib
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

root = pathlib.Path(__file__).resolve().parents[2]
work = root / "build" / "mutants"
tree = work / "tree"
build = work / "build"
results_file = work / "results"
seconds_for_a_test = 40
slow = {"system_calls_test": 900}  # failing system calls, hundreds of thousands


def faults():
    """The faults of faults.txt: name, file, tests, before, after."""
    text = (root / "test/mutation/faults.txt").read_text()
    found = []
    for part in re.split(r"^== ", text, flags=re.M)[1:]:
        head, _, rest = part.partition("--- before\n")
        before, _, after = rest.partition("--- after\n")
        lines = head.strip().split("\n")
        fields = dict(line.split(": ", 1) for line in lines[1:])
        found.append({"name": lines[0].strip(), "file": fields["file"], "tests": fields["tests"].split(),
                      "before": before.rstrip("\n"), "after": after.rstrip("\n")})
    return found


def check(all_faults):
    """Returns the faults whose `before` does not stand exactly once in its file."""
    bad = []
    names = set()
    for f in all_faults:
        path = root / f["file"]
        count = path.read_text().count(f["before"]) if path.exists() else 0
        if count != 1 or f["before"] == f["after"] or f["name"] in names:
            bad.append(f"{f['name']}: found {count} times in {f['file']}")
        names.add(f["name"])
    return bad


def copy_tree():
    """Files keep their times, so that only what changed is built again."""
    tree.mkdir(parents=True, exist_ok=True)
    files = subprocess.run(["git", "ls-files", "-z"], cwd=root, check=True, capture_output=True).stdout
    for name in filter(None, files.decode().split("\0")):
        source, target = root / name, tree / name
        if not source.is_file():
            continue
        content = source.read_bytes()
        if not target.exists() or target.read_bytes() != content:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
            target.chmod(source.stat().st_mode)


def state():
    """What the tests without a fault were tried on."""
    digest = hashlib.sha256()
    for path in sorted(p for folder in ("include", "src", "test") for p in (tree / folder).rglob("*.?pp")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def run(command, seconds, **more):
    """Returns (status, output); status None if it took too long, which counts as noticed. Its children go with it."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
                               start_new_session=True, **more)
    try:
        output, _ = process.communicate(timeout=seconds)
        return process.returncode, output
    except subprocess.TimeoutExpired:
        return None, "took too long"
    finally:
        if process.returncode is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()


def compile_all(jobs, targets):
    return run(["cmake", "--build", str(build), "--parallel", str(jobs), "--target", *targets], 3600)


def configure():
    run(["cmake", "-S", str(tree), "-B", str(build), "-G", "Ninja", "-DCMAKE_BUILD_TYPE=Debug",
         "-DCMAKE_CXX_FLAGS_DEBUG=-O1 -g1", "-DPMR_DEBUG_BUILD_TESTS=ON", "-DPMR_DEBUG_TEST_PARTS=unit;walks;long",
         "-DPMR_DEBUG_TEST_PROGRAMS=ON", "-DPMR_DEBUG_TEST_ALL_POLICIES=ON"], 300)


def programs():
    """All test programs by name."""
    found = {}
    for folder in ("unit", "walks", "catalogue", "conformance", "injection"):
        for path in sorted((build / "test" / folder).glob("*_test")):
            found[path.name] = path
    return found


def noticed_by(test, all_programs, seconds):
    """Returns the first failing test, or None. \\p test: a program, perhaps with :filter."""
    name, _, pattern = test.partition(":")
    if name not in all_programs:
        sys.exit(f"there is no test program {name}")
    if name == "conformance_test" and not pattern:
        pattern = "-Of/Acceptance.*"  # each of these needs a process of its own, see test/conformance/CMakeLists.txt
    command = [str(all_programs[name]), "--gtest_brief=1"]
    if pattern:
        command.append(f"--gtest_filter={pattern}")
    status, output = run(command, max(seconds, slow.get(name, 0)), cwd=build)
    if status == 0:
        return None
    if status is None:
        return f"{name} (took too long)"
    failed = re.search(r"\[  FAILED  \] ([\w./]+)", output)
    return f"{name}: {failed.group(1)}" if failed else f"{name} (ended with status {status})"


def noticed_by_any(all_programs, jobs):
    """Runs all programs, some at once. Returns the first failing test, or None."""
    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        for by in pool.map(lambda name: noticed_by(name, all_programs, 2 * seconds_for_a_test), all_programs):
            if by:
                pool.shutdown(wait=False, cancel_futures=True)
                return by
    return None


def try_fault(f, jobs):
    """Returns (verdict, by)."""
    path = tree / f["file"]
    good = path.read_text()
    path.write_text(good.replace(f["before"], f["after"]))
    try:
        # The tests, too: they may include a header with this fault, or with the one before.
        targets = ["pmr_debug"] + [t.partition(":")[0] for t in f["tests"]]
        status, output = compile_all(jobs, targets)
        if status != 0:
            return "does not compile", output[-300:]
        available = programs()
        for test in f["tests"]:
            if by := noticed_by(test, available, seconds_for_a_test):
                return "caught", by
        status, output = compile_all(jobs, ["all"])
        if status != 0:
            return "does not compile", output[-300:]
        if by := noticed_by_any(available, jobs):
            return "caught", by + " (not among those named)"
        return "SURVIVED", ""
    finally:
        path.write_text(good)


def main():
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # children and the tree are looked after on the way out
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="only whether all faults apply")
    parser.add_argument("--list", action="store_true", help="only the table of what is known")
    parser.add_argument("--from", type=int, default=1, dest="first")
    parser.add_argument("--to", type=int, default=10**6, dest="last")
    parser.add_argument("--only", nargs="*", default=None)
    parser.add_argument("--again", action="store_true", help="also what was tried before")
    parser.add_argument("--same-tree", action="store_true", help="go on with the copy there is, whatever changed since")
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--minutes", type=float, default=10**6, help="start no further fault after that time")
    arguments = parser.parse_args()

    all_faults = faults()
    if bad := check(all_faults):
        print("these faults do not apply any more:", *bad, sep="\n  ")
        sys.exit(2)
    if arguments.check:
        print(f"{len(all_faults)} faults, all apply")
        return

    known = {}
    if results_file.exists():
        for line in results_file.read_text().splitlines():
            name, verdict, by, seconds = line.split("\t")
            known[name] = (verdict, by, float(seconds))

    if not arguments.list:
        start = time.monotonic()
        if not arguments.same_tree:
            copy_tree()
        configure()
        status, output = compile_all(arguments.jobs, ["all"])
        if status != 0:
            print(output[-3000:])
            sys.exit(2)
        if known.get("(none)", ("",))[0] != state():  # a test that fails anyway notices nothing
            if by := noticed_by_any(programs(), arguments.jobs):
                print(f"without a fault: {by}")
                sys.exit(2)
            known["(none)"] = (state(), "", 0)
        for number, f in enumerate(all_faults, 1):
            wanted = f["name"] in arguments.only if arguments.only else arguments.first <= number <= arguments.last
            if not wanted or (f["name"] in known and not arguments.again and not arguments.only):
                continue
            if time.monotonic() - start > arguments.minutes * 60:
                break
            begin = time.monotonic()
            verdict, by = try_fault(f, arguments.jobs)
            known[f["name"]] = (verdict, by, time.monotonic() - begin)
            print(f"{number:3} {f['name']:40} {verdict:10} {known[f['name']][2]:5.1f} s  {by}", flush=True)
            results_file.write_text("".join(f"{n}\t{v}\t{b}\t{s:.1f}\n" for n, (v, b, s) in known.items()))

    print("\n| fault | in | | by |\n|---|---|---|---|")
    caught = 0
    tried = 0
    for f in all_faults:
        verdict, by, _ = known.get(f["name"], ("not tried", "", 0))
        tried += verdict != "not tried"
        caught += verdict == "caught"
        print(f"| {f['name']} | {f['file'].replace('src/', '')} | {verdict} | {by} |")
    print(f"\n{caught} of {tried} caught, {len(all_faults) - tried} not tried")
    sys.exit(0 if caught == tried else 1)


main()
