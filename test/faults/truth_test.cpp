// What is printed is true: who owns what, and who was where.

#include "support/run.hpp"

#include <gtest/gtest.h>

#include <csignal>
#include <string>

namespace {

TEST(truth, two_threads_at_once_in_an_upstream_for_one_are_told) {
    for (const std::string top : {"tracking", "canary", "general_purpose", "end_of_page", "temp", "two resources"}) {
        const faults::outcome o = faults::run("two_threads_in_one_pool", {top, "pool"});
        EXPECT_EQ(o.signal, SIGABRT) << top << o.out << o.err;
        EXPECT_TRUE(
            o.says("two threads at once in the upstream of \"tables\", a std::pmr::unsynchronized_pool_resource"))
            << top << o.err;
        EXPECT_FALSE(o.says("upstream_overlap")) << o.err;
    }
    for (const std::string below : {"monotonic", "ours"}) {
        const faults::outcome o = faults::run("two_threads_in_one_pool", {"tracking", below});
        EXPECT_EQ(o.signal, SIGABRT) << o.err;
        EXPECT_TRUE(o.says("two threads at once in the upstream of \"tables\"")) << o.err;
    }
}

TEST(truth, threads_that_do_not_wait_for_each_other_meet) {
    for (int i = 0; i < 5; ++i) {
        const faults::outcome o = faults::run("two_threads_in_one_pool", {"race", "pool"});
        EXPECT_EQ(o.signal, SIGABRT) << o.out << o.err;
        EXPECT_TRUE(o.says("two threads at once in the upstream of \"tables\"")) << o.err;
    }
    const faults::outcome guarded = faults::run("two_threads_in_one_pool", {"guarded", "pool"});
    EXPECT_TRUE(guarded.prints("silent")) << guarded.err;
    EXPECT_EQ(guarded.err, "");
}

}  // namespace
