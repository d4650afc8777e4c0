// Reports where the program has little stack, and where nobody can say how much.

#include "support/run.hpp"

#include <gtest/gtest.h>

#include <string>

namespace {

using faults::outcome;
using faults::run;

void expect_full_reports(const std::string& where) {
    for (const char* const resource : {"general", "tracking", "canary", "fence", "temp", "page"}) {
        const outcome o = run("small_stack", {where, resource});
        EXPECT_EQ(o.status, 0) << where << ' ' << resource << ": " << o.err;
        EXPECT_EQ(o.out, "0 bytes damaged\n") << where << ' ' << resource;
        EXPECT_EQ(o.times("pmr_debug: double_free: 100-byte block"), 1U) << where << ' ' << resource << ": " << o.err;
        EXPECT_TRUE(o.says("freed_twice")) << where << ' ' << resource << ": " << o.err;
    }
}

TEST(small_stacks, a_thread_of_the_smallest_size_reports) {
    expect_full_reports("thread");
}

TEST(small_stacks, a_handler_on_a_small_signal_stack_reports) {
    expect_full_reports("signal");
}

#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
// Sanitizers know the stacks of threads that they made, and their instrumented frames are larger.

TEST(small_stacks, a_thread_on_the_programs_own_memory_reports) {
    expect_full_reports("own");
}

TEST(small_stacks, a_fiber_on_the_heap_reports) {
    expect_full_reports("fiber");
}

TEST(small_stacks, a_fiber_on_an_array_of_another_stack_reports) {
    expect_full_reports("local");
}
#endif

TEST(small_stacks, resources_may_live_and_die_in_a_small_thread) {
    for (const char* const resource : {"general", "tracking", "canary", "fence", "page"}) {
        const outcome o = run("short_life", {resource});
        EXPECT_EQ(o.out, "lived\n") << resource << ": " << o.err;
        EXPECT_EQ(o.times("pmr_debug: leak: 100 bytes in 1 block"), 1U) << resource << ": " << o.err;
    }
}

TEST(small_stacks, a_protected_page_within_the_stack_is_not_read) {
    const outcome o = run("protected_page");
    EXPECT_EQ(o.signal, 0) << o.err;
    EXPECT_EQ(o.out, "went well\n");
    EXPECT_EQ(o.err, "");
}

}  // namespace
