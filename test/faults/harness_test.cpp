// What the other tests of this folder rely on: ends, output and hangs of programs are seen.

#include "support/run.hpp"

#include <gtest/gtest.h>

namespace {

TEST(harness, sees_how_a_program_ends_and_what_it_says) {
    const faults::outcome o = faults::run("double_free");
    EXPECT_FALSE(o.hung);
    EXPECT_EQ(o.signal, SIGABRT);
    EXPECT_TRUE(o.says("double_free")) << o.err;
    EXPECT_EQ(o.times("double_free:"), 1u) << o.err;
}

TEST(harness, sees_a_hang) {
    EXPECT_TRUE(faults::run_child([] { ::pause(); }, 1).hung);
}

}  // namespace
