// Address space, memory and locks that the library takes: in proportion to what is used, however the process is
// limited.

#include "support/run.hpp"

#include <gtest/gtest.h>

#include <cstdio>
#include <string>

namespace {

// The shadow memory of the sanitizers is far beyond any limit, resident memory is theirs, and they end a program at the
// first byte behind an array.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define UNDER_A_SANITIZER 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define UNDER_A_SANITIZER 1
#endif
#endif

using faults::outcome;
using faults::run;

#ifndef UNDER_A_SANITIZER

int percent_left(const outcome& o) {
    int percent = -1;
    EXPECT_EQ(std::sscanf(o.out.c_str(), "left %d", &percent), 1) << o.out << o.err;
    return percent;
}

// Reservations, made first come first served, once left too little at some sizes, and enough at smaller ones.
TEST(address_limit, resources_work_report_and_trace_at_any_size) {
    for (const char* const size : {"160", "200", "250", "300", "400", "500", "600", "800", "4000"}) {
        const outcome o = run("memory_limits", {"addresses", size, "1"});
        EXPECT_EQ(o.out, "pages ok, heap ok, tracking ok, canary ok, end of page ok, end of page over pages ok\n")
            << size << o.err;
    }
}

TEST(address_limit, twenty_mebibytes_live_under_two_hundred) {
    const outcome o = run("memory_limits", {"addresses", "200", "20"});
    EXPECT_EQ(o.out, "pages ok, heap ok, tracking ok, canary ok, end of page ok, end of page over pages ok\n") << o.err;
}

TEST(address_limit, the_rest_of_the_program_keeps_nine_tenths) {
    for (const char* const size : {"500", "1000", "4000", "8000", "16000"}) {
        for (const char* const kind : {"tracking", "canary", "heap", "pages", "end_of_page"}) {
            EXPECT_GE(percent_left(run("memory_limits", {"addresses_left", size, kind})), 90) << size << " " << kind;
        }
    }
}

TEST(data_limit, the_rest_of_the_program_keeps_nine_tenths) {
    for (const char* const size : {"100", "1000", "4000", "9000"}) {
        for (const char* const kind : {"tracking", "canary", "heap", "pages", "end_of_page"}) {
            EXPECT_GE(percent_left(run("memory_limits", {"data_left", size, kind})), 90) << size << " " << kind;
        }
    }
}

// What strict overcommit charges, RLIMIT_DATA counts and a core file holds: private pages that may be written.
TEST(memory, little_is_writable_before_it_is_used) {
    const outcome o = run("memory_limits", {"used"});
    int resident = -1;
    int writable = -1;
    ASSERT_EQ(std::sscanf(o.out.c_str(), "resident %d, writable %d", &resident, &writable), 2) << o.out << o.err;
    EXPECT_LT(resident, 64);
    EXPECT_LT(writable, 64);
}

TEST(memory, of_a_process_that_locks_its_memory_stays_small) {
    const outcome o = run("memory_limits", {"locked"});
    if (o.prints("may not")) {
        GTEST_SKIP() << "this user may not lock so much memory";
    }
    int resident = -1;
    int writable = -1;
    int locked = -1;
    ASSERT_EQ(std::sscanf(o.out.c_str(), "resident %d, writable %d, locked %d", &resident, &writable, &locked), 3)
        << o.out << o.err;
    EXPECT_LT(resident, 100);
    EXPECT_LT(locked, 200);
    EXPECT_TRUE(o.prints("in time: 1")) << o.out;
}

TEST(memory, more_than_there_is_is_refused_as_new_does) {
    const outcome o = run("memory_limits", {"more"});
    EXPECT_EQ(o.out, "refused 11 of 11\n") << o.err;
    EXPECT_EQ(o.status, 0);
}

TEST(memory, thousands_of_resources_fit_into_a_process) {
    const outcome o = run("memory_limits", {"many", "10000"}, 60);
    EXPECT_EQ(o.out.substr(0, 11), "made 10000,") << o.out << o.err;
    EXPECT_EQ(o.status, 0) << o.err;
}

// The memory of large blocks goes back though the usual call is refused. 100 MiB: the quarantines, and some.
TEST(filtered_calls, memory_goes_back_all_the_same) {
    for (const char* const refused : {"madvise", "mremap", "madvise mremap", "madvise mprotect mremap"}) {
        const outcome o = run("filtered_calls", {refused}, 60);
        if (o.prints("may not")) {
            GTEST_SKIP() << "no filter may be installed here";
        }
        int released = 0;
        int freed = 0;
        int errors = -1;
        int most = -1;
        ASSERT_EQ(
            std::sscanf(o.out.c_str(), "released %d: %d MiB\nerrors %d, most %d", &released, &freed, &errors, &most), 4)
            << refused << ": " << o.out << o.err;
        EXPECT_EQ(released, 1) << refused;
        EXPECT_EQ(freed, 8) << refused;
        EXPECT_EQ(errors, 0) << refused;
        EXPECT_LT(most, 100) << refused;
    }
}

// An overrun that reaches a guard ends there, by a signal; one that ends before it must not cost a finding.
TEST(static_data, overruns_of_the_programs_arrays_cost_no_finding) {
    for (const char* const where : {"bss", "data"}) {
        for (const char* const bytes : {"64", "256", "1024", "4096", "8192", "65536", "1000000", "8000000"}) {
            const outcome o = run("array_overrun", {bytes, where});
            if (o.prints("done")) {
                EXPECT_TRUE(o.says("double_free")) << bytes << " in " << where << ", signal " << o.signal << "\n"
                                                   << o.err;
                EXPECT_TRUE(o.says("main")) << bytes << " in " << where << "\n" << o.err;
            } else {
                EXPECT_EQ(o.signal, SIGSEGV) << bytes << " in " << where << "\n" << o.err;
            }
        }
    }
}

#endif

}  // namespace
