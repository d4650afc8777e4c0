// A fault ends the program as it would have: what is mapped meanwhile, who else handles faults, on which stack.

#include "support/run.hpp"

#include <gtest/gtest.h>

#include <string>

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SKIP_WHERE_SANITIZERS_OWN_FAULTS() GTEST_SKIP() << "the sanitizer handles SIGSEGV itself"
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define SKIP_WHERE_SANITIZERS_OWN_FAULTS() GTEST_SKIP() << "the sanitizer handles SIGSEGV itself"
#endif
#endif
#ifndef SKIP_WHERE_SANITIZERS_OWN_FAULTS
#define SKIP_WHERE_SANITIZERS_OWN_FAULTS() static_cast<void>(0)
#endif

namespace {

using faults::outcome;
using faults::run;

TEST(signals, a_late_write_ends_the_program_whatever_is_mapped_meanwhile) {
    SKIP_WHERE_SANITIZERS_OWN_FAULTS();
    for (const char* const way : {"vector", "arena", "mapper"}) {
        const outcome o = run("late_write", {way});
        EXPECT_EQ(o.signal, SIGSEGV) << way << ": " << o.err;
        EXPECT_FALSE(o.prints("went on")) << way;
        EXPECT_EQ(o.times("pmr_debug: "), 1U) << way << ": " << o.err;
        EXPECT_TRUE(o.says("late_write")) << way << ": " << o.err;
    }
}

TEST(signals, a_fault_whose_page_is_made_accessible_meanwhile_ends_the_program) {
    SKIP_WHERE_SANITIZERS_OWN_FAULTS();
    const outcome o = run("late_write", {"filler"});
    EXPECT_EQ(o.signal, SIGSEGV) << o.err;
    EXPECT_FALSE(o.prints("went on"));
    EXPECT_EQ(o.times("told"), 1U) << o.err;
}

TEST(signals, a_stack_that_runs_into_unmapped_memory_ends_the_program) {
    SKIP_WHERE_SANITIZERS_OWN_FAULTS();
    const outcome o = run("late_write", {"overflow"});
    EXPECT_EQ(o.signal, SIGSEGV) << o.err;
    EXPECT_TRUE(o.says("the thread's stack is used up")) << o.err;
}

TEST(signals, faults_that_the_program_resolves_are_silent_and_the_handler_stays) {
    SKIP_WHERE_SANITIZERS_OWN_FAULTS();
    for (const char* const way : {"default", "again"}) {
        const outcome o = run("resolves_faults", {way, "heap"});
        EXPECT_TRUE(o.prints("320 resolved")) << way << ": " << o.out;
        EXPECT_EQ(o.times("pmr_debug: "), 1U) << way << ": " << o.err;
        EXPECT_TRUE(o.says("use_after_free: freed 100000-byte block")) << way << ": " << o.err;
        EXPECT_EQ(o.signal, SIGSEGV) << way;
    }
}

TEST(signals, a_fault_that_the_program_gives_up_is_told_of) {
    SKIP_WHERE_SANITIZERS_OWN_FAULTS();
    for (const char* const way : {"default", "again", "raise"}) {
        const outcome o = run("resolves_faults", {way, "nobodys"});
        EXPECT_TRUE(o.prints("320 resolved")) << way << ": " << o.out;
        EXPECT_EQ(o.times("pmr_debug: "), 1U) << way << ": " << o.err;
        EXPECT_TRUE(o.says("pmr_debug: fault: ")) << way << ": " << o.err;
        EXPECT_EQ(o.signal, SIGSEGV) << way;
    }
}

TEST(signals, a_program_that_jumps_out_of_its_handler_goes_on) {
    SKIP_WHERE_SANITIZERS_OWN_FAULTS();
    const outcome o = run("resolves_faults", {"jump", "heap"});
    EXPECT_EQ(o.status, 0) << o.err;
    EXPECT_TRUE(o.prints("went on, 640 resolved")) << o.out;
    EXPECT_EQ(o.times("pmr_debug: use_after_free: "), 1U) << o.err;  // three times the same fault
    const outcome nobodys = run("resolves_faults", {"jump", "nobodys"});
    EXPECT_EQ(nobodys.status, 0) << nobodys.err;
    EXPECT_TRUE(nobodys.prints("went on, 640 resolved")) << nobodys.out;
    EXPECT_EQ(nobodys.err, "");
}

#if defined(__x86_64__)
TEST(signals, a_program_that_skips_the_instruction_goes_on_in_silence) {
    SKIP_WHERE_SANITIZERS_OWN_FAULTS();
    const outcome o = run("resolves_faults", {"skip", "nobodys"});
    EXPECT_EQ(o.status, 0) << o.err;
    EXPECT_TRUE(o.prints("went on, 640 resolved")) << o.out;
    EXPECT_EQ(o.err, "");
}
#endif

TEST(signals, a_handler_that_returns_with_nothing_resolved_has_it_told_of_once) {
    SKIP_WHERE_SANITIZERS_OWN_FAULTS();
    const outcome o = run("resolves_faults", {"endless", "nobodys"});
    EXPECT_EQ(o.status, 4) << o.err;  // its own limit
    EXPECT_EQ(o.times("pmr_debug: fault: "), 1U) << o.err;
}

TEST(signals, the_handler_of_before_may_end_the_program) {
    SKIP_WHERE_SANITIZERS_OWN_FAULTS();
    const outcome ours = run("resolves_faults", {"exit", "heap"});
    EXPECT_EQ(ours.status, 5) << ours.err;
    EXPECT_EQ(ours.times("pmr_debug: use_after_free: "), 1U) << ours.err;
    const outcome theirs = run("resolves_faults", {"exit", "nobodys"});
    EXPECT_EQ(theirs.status, 5) << theirs.err;
    EXPECT_EQ(theirs.err, "");
}

TEST(signals, a_later_handler_that_passes_faults_on_meets_no_endless_loop) {
    SKIP_WHERE_SANITIZERS_OWN_FAULTS();
    for (const char* const way : {"fault", "nobodys", "resolve", "loop"}) {
        const outcome o = run("passes_faults_on", {way}, 10);
        EXPECT_FALSE(o.hung) << way;
        EXPECT_EQ(o.signal, SIGSEGV) << way << ": " << o.err;
        EXPECT_EQ(o.times("pmr_debug: "), 1U) << way << ": " << o.err;
        EXPECT_TRUE(o.prints("passing on")) << way;
    }
}

TEST(signals, a_later_handler_that_raises_the_signal_anew_hides_no_fault) {
    SKIP_WHERE_SANITIZERS_OWN_FAULTS();
#if defined(__x86_64__)
    const outcome o = run("passes_faults_on", {"raise"}, 10);
    EXPECT_EQ(o.signal, SIGSEGV) << o.err;
    EXPECT_TRUE(o.says("use_after_free: freed 100000-byte block")) << o.err;
    EXPECT_EQ(o.times("pmr_debug: "), 1U) << o.err;
#endif
    const outcome sent = run("passes_faults_on", {"sent"}, 10);
    EXPECT_EQ(sent.signal, SIGSEGV) << sent.err;
    EXPECT_EQ(sent.times("pmr_debug: "), 0U) << sent.err;
}

TEST(signals, nothing_is_written_outside_the_programs_signal_stack) {
    SKIP_WHERE_SANITIZERS_OWN_FAULTS();
    for (const char* const size : {"2048", "4096", "8192", "16384", "65536"}) {
        for (const bool handles : {false, true}) {
            const outcome o = run("own_signal_stack", {size, handles ? "handler" : "none"});
            if (o.prints("refused")) {  // the kernel's own limit
                continue;
            }
            EXPECT_TRUE(o.prints("0 bytes damaged\n") && !o.prints("00 bytes damaged\n")) << size << ": " << o.out;
            EXPECT_TRUE(o.says("use_after_free: freed 100000-byte block")) << size << ": " << o.err;
            EXPECT_EQ(o.signal, handles ? 0 : SIGSEGV) << size;
            EXPECT_EQ(o.status, handles ? 5 : -1) << size;
        }
    }
}

TEST(signals, a_resource_that_is_used_before_its_construction_is_no_null_pointer) {
    SKIP_WHERE_SANITIZERS_OWN_FAULTS();
    const outcome o = run("used_before_made");
    EXPECT_EQ(o.signal, SIGSEGV) << o.err;
    EXPECT_TRUE(o.says("was read: resource used before its construction, its object is still zero")) << o.err;
    // This one's function, if it is called, sees it itself.
    const outcome page = run("used_before_made_page");
    EXPECT_NE(page.signal, 0) << page.err;
    EXPECT_TRUE(page.says("used before its construction, its object is still zero")) << page.err;
    EXPECT_FALSE(page.says("after its destruction")) << page.err;
}

}  // namespace
