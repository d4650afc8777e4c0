#include "os/stack_bounds.hpp"

#include <gtest/gtest.h>
#include <pthread.h>
#include <sys/mman.h>

#include <cstdint>
#include <thread>

namespace {

using namespace pmr_debug;

std::uintptr_t own_frame() {
    return reinterpret_cast<std::uintptr_t>(__builtin_frame_address(0));
}

struct limits {
    std::uintptr_t low;
    std::uintptr_t high;
};

limits of_pthread() {
    pthread_attr_t attributes;
    pthread_getattr_np(pthread_self(), &attributes);
    void* low = nullptr;
    std::size_t size = 0;
    pthread_attr_getstack(&attributes, &low, &size);
    pthread_attr_destroy(&attributes);
    const auto address = reinterpret_cast<std::uintptr_t>(low);
    return {address, address + size};
}

void expect_sound(const os::stack_bounds& b) {
    EXPECT_LT(b.low, own_frame());
    EXPECT_GT(b.high, own_frame());
    EXPECT_LE(b.high, os::find_mapping(own_frame()).high);
    // Close enough to the end that no frame of the thread lies beyond.
    EXPECT_GT(b.high, of_pthread().high - 16 * 1024);
}

TEST(stack_bounds, main_thread) {
    expect_sound(os::this_stack(own_frame()));
}

TEST(stack_bounds, other_thread) {
    std::thread([] {
        expect_sound(os::this_stack(own_frame()));
        EXPECT_GE(os::this_stack(own_frame()).low, of_pthread().low - 4096);
    }).join();
}

TEST(stack_bounds, asked_for_from_a_foreign_stack_first) {
    static int elsewhere = 0;
    std::thread([] { expect_sound(os::this_stack(reinterpret_cast<std::uintptr_t>(&elsewhere))); }).join();
}

TEST(stack_bounds, of_the_main_thread_do_not_depend_on_where_it_is_asked_from) {
    const os::stack_bounds usual = os::this_stack(own_frame());
    // Likely to become one mapping with the memory that holds the thread's control block.
    void* const p = mmap(nullptr, 65536, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    ASSERT_NE(p, MAP_FAILED);
    const os::stack_bounds from_fiber = os::detail::find_stack(reinterpret_cast<std::uintptr_t>(p) + 32768);
    EXPECT_EQ(from_fiber.low, usual.low);
    EXPECT_EQ(from_fiber.high, usual.high);
    munmap(p, 65536);
}

TEST(stack_bounds, both_ways_to_find_a_mapping_agree) {
    void* const p = mmap(nullptr, 3 * 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    ASSERT_NE(p, MAP_FAILED);
    // Different permissions keep it apart from its neighbours.
    ASSERT_EQ(mprotect(static_cast<char*>(p) + 4096, 4096, PROT_NONE), 0);
    const auto middle = reinterpret_cast<std::uintptr_t>(p) + 4096;
    for (const std::uintptr_t address : {middle, middle + 1, middle + 4095}) {
        const os::mapping m = os::detail::read_mapping(address);
        EXPECT_EQ(m.low, middle);
        EXPECT_EQ(m.high, middle + 4096);
        const os::mapping q = os::detail::query_mapping(address);
        if (q.high != 0) {  // the kernel knows how
            EXPECT_EQ(q.low, m.low);
            EXPECT_EQ(q.high, m.high);
        }
        EXPECT_EQ(os::find_mapping(address).low, middle);
    }
    munmap(p, 3 * 4096);
    EXPECT_EQ(os::find_mapping(1).high, 0U);
    const auto code = reinterpret_cast<std::uintptr_t>(&os::can_read);
    EXPECT_TRUE(os::find_mapping(code).executable);
    EXPECT_TRUE(os::detail::read_mapping(code).executable);
    EXPECT_FALSE(os::find_mapping(own_frame()).executable);
    EXPECT_FALSE(os::detail::read_mapping(own_frame()).executable);
    EXPECT_EQ(os::detail::read_mapping(1).high, 0U);
}

}  // namespace
