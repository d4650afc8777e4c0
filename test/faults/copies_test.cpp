// Several copies of the library in one process, which share no symbol.

#include "support/run.hpp"

#include <gtest/gtest.h>

#include <string>

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SANITIZED 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define SANITIZED 1
#endif
#endif
#ifndef SANITIZED
#define SANITIZED 0
#endif

namespace {

using faults::outcome;
using faults::path_of;
using faults::run;

TEST(copies, a_block_of_another_copys_resource_has_an_owner) {
    for (const char* const resource : {"general", "tracking", "canary", "fence", "temp", "page"}) {
        const outcome o = run("two_copies", {path_of("own_copy.so"), resource});
        EXPECT_EQ(o.signal, SIGABRT) << resource << ": " << o.out << o.err;
        EXPECT_EQ(o.times("pmr_debug: "), 1U) << resource << ": " << o.err;
        EXPECT_TRUE(o.says("pmr_debug: wrong_resource: 64-byte block 0x")) << resource << ": " << o.err;
        EXPECT_TRUE(o.says(" of \"plug-in's heap\" was freed through ")) << resource << ": " << o.err;
        EXPECT_TRUE(o.says("owner      \"plug-in's heap\" (general_purpose_resource of another copy of pmr_debug at"))
            << resource << ": " << o.err;
        EXPECT_TRUE(o.says("plugin_allocate")) << resource << ": " << o.err;
    }
}

#if !SANITIZED  // which own SIGSEGV
TEST(copies, a_fault_in_memory_of_another_copy_is_explained) {
    const outcome o = run("two_copies", {path_of("own_copy.so"), "late"});
    EXPECT_EQ(o.signal, SIGSEGV) << o.out;
    EXPECT_TRUE(o.says("pmr_debug: use_after_free: freed 100000-byte block 0x")) << o.err;
    EXPECT_TRUE(o.says("\"plug-in's heap\" (general_purpose_resource of another copy of pmr_debug at")) << o.err;
    EXPECT_TRUE(o.says("plugin_allocate")) << o.err;
}
#endif

#if !SANITIZED
TEST(copies, a_handler_of_before_that_was_unloaded_hands_over_to_the_one_before_it) {
    const outcome resolved = run("fault_handlers_of_two_copies", {path_of("handles_faults.so"), "barrier"});
    EXPECT_EQ(resolved.status, 0) << resolved.signal << resolved.out << resolved.err;
    EXPECT_TRUE(resolved.prints("went on")) << resolved.out;
    EXPECT_EQ(resolved.err, "");
    for (const char* const way : {"nobodys", "freed"}) {
        const outcome o = run("fault_handlers_of_two_copies", {path_of("handles_faults.so"), way});
        EXPECT_EQ(o.signal, SIGSEGV) << way << ": " << o.out;
        EXPECT_EQ(o.times("pmr_debug: "), 1U) << way << ": " << o.err;
        EXPECT_TRUE(o.says(way == std::string("freed") ? "pmr_debug: use_after_free: freed 100000-byte block"
                                                       : "pmr_debug: fault: "))
            << o.err;
        EXPECT_TRUE(o.says("fault_handlers_of_two_copies")) << way << ": " << o.err;
    }
}

TEST(copies, the_same_fault_is_told_of_once) {
    for (const char* const order : {"plugin_first", "program_first"}) {
        for (const std::string access : {"freed", "nobodys"}) {
            const outcome o = run("fault_handlers_of_two_copies", {path_of("handles_faults.so"), order, access});
            EXPECT_EQ(o.signal, SIGSEGV) << order << access << ": " << o.out;
            EXPECT_EQ(o.times("pmr_debug: "), 1U) << order << access << ": " << o.err;
            EXPECT_TRUE(o.says(access == "freed" ? "pmr_debug: use_after_free: freed 100000-byte block"
                                                 : " was written: not memory of any pmr_debug resource"))
                << order << ": " << o.err;
        }
        const outcome o = run("fault_handlers_of_two_copies", {path_of("handles_faults.so"), order, "barrier"});
        EXPECT_TRUE(o.prints("went on")) << order << o.out;
        EXPECT_EQ(o.err, "") << order;
    }
}

TEST(copies, a_handler_whose_code_was_unloaded_is_not_called) {
    const outcome o = run("fault_handlers_of_two_copies", {path_of("handles_faults.so"), "own"});
    EXPECT_EQ(o.signal, SIGSEGV) << o.out;
    EXPECT_EQ(o.times("pmr_debug: fault: "), 1U) << o.err;
    EXPECT_TRUE(o.says(" was written: not memory of any pmr_debug resource")) << o.err;
}
#endif

TEST(copies, one_that_was_unloaded_is_not_asked) {
    const outcome o = run("two_copies", {path_of("own_copy.so"), "unloaded"});
    EXPECT_EQ(o.signal, SIGABRT) << o.out << o.err;
    EXPECT_EQ(o.times("pmr_debug: invalid_free: "), 1U) << o.err;
}

}  // namespace
