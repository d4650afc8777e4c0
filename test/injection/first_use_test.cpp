// The first use of the library, in a process of its own each time, while a system call fails: afterwards it works.

#include "subjects.hpp"

#include <gtest/gtest.h>

#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>

namespace {

using namespace injection;

/// Effects: runs the program under \p p, and then without faults. Returns: what was wrong; 0: nothing.
template <class Subject>
int first_use(const plan& p) {
    collecting_handler* reports = nullptr;
    findings under_faults;
    {
        // The handler needs memory, too, and may not get it.
        const faults armed(p);
        reports = new collecting_handler;
        the_handler() = reports;
    }
    run<Subject>(p, under_faults);
    findings afterwards;
    run<Subject>({}, afterwards);
    std::fputs(under_faults.text.c_str(), stderr);
    std::fputs(afterwards.text.c_str(), stderr);
    return (under_faults.text.empty() ? 0 : 1) | (afterwards.text.empty() ? 0 : 2) | (afterwards.refused == 0 ? 0 : 4) |
           (reports->count() == 0 ? 0 : 8);
}

/// Returns: how the child ended, as by waitpid.
template <class F>
int in_child(const F& f) {
    const pid_t child = ::fork();
    if (child == 0) {
        ::_exit(f());
    }
    int status = -1;
    EXPECT_EQ(::waitpid(child, &status, 0), child);
    return status;
}

template <class Subject>
void fail_first_uses() {
    constexpr unsigned kinds = memory_calls | only(call::key) | only(call::open);
    // Nothing of the library has run in this process, and so nothing in its children.
    std::uint64_t faults_made = 0;
    for (std::uint64_t k = 1; k <= 40; ++k) {
        EXPECT_EQ(in_child([k] { return first_use<Subject>({.calls = kinds, .first = k, .last = k}); }), 0)
            << "call " << k;
        EXPECT_EQ(in_child([k] { return first_use<Subject>({.calls = kinds, .first = k, .last = UINT64_MAX}); }), 0)
            << "from call " << k << " on";
        faults_made += 2;
    }
    std::printf("faults injected: %llu\n", static_cast<unsigned long long>(faults_made));
}

TEST(first_use, heap) {
    fail_first_uses<heap_subject<default_policy>>();
}
TEST(first_use, tracking) {
    fail_first_uses<tracking_subject>();
}
TEST(first_use, end_of_page) {
    fail_first_uses<fence_subject<default_policy>>();
}
TEST(first_use, temp) {
    fail_first_uses<temp_subject>();
}

}  // namespace
