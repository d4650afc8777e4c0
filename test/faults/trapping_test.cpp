// A late read of a small block: by default a fault, explained, among the first thousand of a resource that is there for
// such faults; silent in others, and the docs say so; a fault once it is asked for.

#include "support/run.hpp"

#include <gtest/gtest.h>

#include <string>

#if defined(__SANITIZE_ADDRESS__)
#define TRAPPING_WITH_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define TRAPPING_WITH_ASAN 1
#endif
#endif
#ifndef TRAPPING_WITH_ASAN
#define TRAPPING_WITH_ASAN 0
#endif

namespace {

// AddressSanitizer, which knows that freed blocks are nobody's, is the first to see any of these reads, and ends the
// program with a report of its own.
bool seen_by_asan(const faults::outcome& o) {
    return TRAPPING_WITH_ASAN != 0 && o.says("AddressSanitizer");
}

void expect_explained(const faults::outcome& o) {
    if (seen_by_asan(o)) {
        return;
    }
    EXPECT_FALSE(o.hung);
    EXPECT_FALSE(o.prints("read ")) << o.out;
    EXPECT_NE(o.signal, 0) << o.err;
    EXPECT_TRUE(o.says("use_after_free")) << o.err;
    EXPECT_TRUE(o.says("was read")) << o.err;
    EXPECT_EQ(o.times("here:") + o.times("here by thread"), 1U) << o.err;
    EXPECT_TRUE(o.says("allocated by thread")) << o.err;
    EXPECT_TRUE(o.says("freed by thread")) << o.err;
    EXPECT_TRUE(o.prints("untrapped 0\n")) << o.out;
}

void expect_silent(const faults::outcome& o) {
    if (!seen_by_asan(o)) {
        EXPECT_EQ(o.signal, 0) << o.err;
        EXPECT_TRUE(o.prints("read dd")) << o.out;
    }
}

TEST(trap_freed, by_default_takes_the_first_thousand_where_faults_are_what_the_resource_is_for) {
    for (const std::string which : {"fence", "thorough"}) {
        SCOPED_TRACE(which);
        expect_explained(faults::run("read_after_free", {which, "plain"}));
        expect_silent(faults::run("read_after_free", {which, "later"}));
        expect_silent(faults::run("read_after_free", {which, "none"}));
    }
}

TEST(trap_freed, is_off_by_default_elsewhere_and_a_late_read_of_a_small_block_is_silent) {
    expect_silent(faults::run("read_after_free", {"heap", "plain"}));
}

TEST(trap_freed, makes_a_late_read_fault_and_the_fault_is_explained) {
    for (const std::string which : {"fence", "heap", "thorough", "heap_immediate"}) {
        for (const std::string choice : {"all", "sized"}) {
            SCOPED_TRACE(which + " " + choice);
            expect_explained(faults::run("read_after_free", {which, choice}));
        }
    }
}

TEST(trap_freed, without_records_says_what_the_memory_was) {
    const faults::outcome o = faults::run("read_after_free", {"release", "all"});
    if (!seen_by_asan(o)) {
        EXPECT_NE(o.signal, 0) << o.err;
        EXPECT_FALSE(o.prints("read ")) << o.out;
        EXPECT_TRUE(o.says("heap")) << o.err;
    }
}

TEST(trap_freed, counts_what_cannot_be_trapped) {
    const faults::outcome o = faults::run("read_after_free", {"heap_elsewhere", "all"});
    if (!seen_by_asan(o)) {
        EXPECT_EQ(o.signal, 0) << o.err;
        EXPECT_TRUE(o.prints("untrapped 6\n")) << o.out;
    }
}

TEST(trap_freed, one_in_many_leaves_the_others_as_they_were) {
    const faults::outcome o = faults::run("read_after_free", {"heap", "some"});
    if (!seen_by_asan(o)) {
        EXPECT_EQ(o.signal, 0) << o.err;
        EXPECT_TRUE(o.prints("read dd")) << o.out;
    }
}

}  // namespace
