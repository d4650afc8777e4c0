#include <pmr_debug/stack_trace.hpp>

#include <gtest/gtest.h>

#include <vector>

namespace {

using pmr_debug::capture_trace;
using pmr_debug::trace_id;
using pmr_debug::view;

__attribute__((noinline)) trace_id here(unsigned frames) {
    const trace_id id = capture_trace(frames);
    asm volatile("");
    return id;
}

__attribute__((noinline)) trace_id below(unsigned levels, unsigned frames) {
    const trace_id id = levels == 0 ? here(frames) : below(levels - 1, frames);
    asm volatile("");
    return id;
}

TEST(capture_trace, keeps_no_more_frames_than_asked_for) {
    EXPECT_EQ(below(80, 0), trace_id::none);
    for (const unsigned frames : {1U, 2U, 7U, 8U, 63U, 64U}) {
        const auto trace = view(below(80, frames));
        EXPECT_EQ(trace.frames.size(), frames);
        EXPECT_TRUE(trace.flags.depth_reached);
        EXPECT_FALSE(trace.flags.cut_short);
    }
    EXPECT_EQ(view(below(80, 65)).frames.size(), 64U);
    EXPECT_EQ(view(below(80, 0xFFFF'FFFF)).frames.size(), 64U);
}

TEST(capture_trace, same_path_same_id_other_path_other_id) {
    std::vector<trace_id> ids;
    for (int i = 0; i < 3; ++i) {
        ids.push_back(below(3, 8));
    }
    EXPECT_EQ(ids[0], ids[1]);
    EXPECT_EQ(ids[0], ids[2]);
    EXPECT_NE(ids[0], below(3, 8));
    EXPECT_NE(ids[0], below(4, 64));
}

}  // namespace
