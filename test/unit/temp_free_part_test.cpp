// Writes into memory of a temp resource that it never handed out.

#include <pmr_debug/pmr_debug.hpp>

#include <gtest/gtest.h>

#include <cstddef>
#include <cstring>
#include <memory_resource>
#include <string>

namespace {

using pmr_debug::error_kind;

// The arena's memory is closed to sanitizers, which would stop the program at the access itself.
__attribute__((noinline, no_sanitize("address", "thread"))) void poke(volatile unsigned char* p) {
    *p = 1;
}

__attribute__((noinline, no_sanitize("address", "thread"))) unsigned char peek(const volatile unsigned char* p) {
    return *p;
}

class temp_free_part : public ::testing::Test {
protected:
    void expect_overrun(const volatile unsigned char* first_bad, const void* block, std::size_t bytes = 1) {
        ASSERT_EQ(errors.size(), 1u);
        const pmr_debug::report& r = errors[0].facts;
        EXPECT_EQ(r.kind, error_kind::overrun);
        EXPECT_EQ(r.first_bad, const_cast<const unsigned char*>(first_bad));
        EXPECT_EQ(r.bad_bytes, bytes);
        EXPECT_EQ(r.block.address, block);
        EXPECT_TRUE(r.nearest_only || block == nullptr);
        EXPECT_NE(errors[0].text.find("never handed out"), std::string::npos) << errors[0].text;
        errors.clear();
    }

    pmr_debug::collecting_handler errors;
};

volatile unsigned char* take(std::pmr::memory_resource& r, std::size_t bytes = 64) {
    return static_cast<volatile unsigned char*>(r.allocate(bytes, 16));
}

void give(std::pmr::memory_resource& r, volatile unsigned char* p, std::size_t bytes = 64) {
    r.deallocate(const_cast<unsigned char*>(p), bytes, 16);
}

TEST_F(temp_free_part, is_verified_by_check) {
    pmr_debug::temp_resource<> arena({.handler = &errors});
    volatile unsigned char* const p = take(arena);
    poke(p + 164);
    EXPECT_EQ(arena.check(), 1u);
    expect_overrun(p + 164, const_cast<unsigned char*>(p));
    EXPECT_EQ(arena.check(), 0u);  // told once
    give(arena, p);
}

TEST_F(temp_free_part, of_a_given_buffer_is_verified_on_release) {
    alignas(16) unsigned char buffer[4096];
    pmr_debug::temp_resource<> arena(buffer, sizeof buffer, {.handler = &errors});
    volatile unsigned char* const p = take(arena);
    poke(buffer + sizeof buffer - 1);
    give(arena, p);
    arena.release();
    expect_overrun(buffer + sizeof buffer - 1, const_cast<unsigned char*>(p));
}

TEST_F(temp_free_part, before_the_first_block_is_verified) {
    alignas(16) unsigned char buffer[4096];
    {
        pmr_debug::temp_resource<> arena(buffer, sizeof buffer, {.handler = &errors});
        poke(buffer + 100);
    }
    expect_overrun(buffer + 100, nullptr);
}

TEST_F(temp_free_part, is_verified_on_rewind) {
    pmr_debug::temp_resource<4096> arena({.handler = &errors});
    volatile unsigned char* p = nullptr;
    {
        const pmr_debug::temp_mark here(arena);
        p = take(arena);
        poke(p + 300);
        give(arena, p);
    }
    expect_overrun(p + 300, const_cast<unsigned char*>(p));
}

TEST_F(temp_free_part, is_verified_when_a_chunk_retires_and_at_the_end) {
    volatile unsigned char* p = nullptr;
    {
        pmr_debug::temp_resource<> arena({.handler = &errors});
        p = take(arena);
        poke(p + 500);
        volatile unsigned char* const large = take(arena, 100'000);  // another chunk
        give(arena, large, 100'000);
        give(arena, p);
    }
    ASSERT_EQ(errors.size(), 1u);
    EXPECT_EQ(errors[0].facts.first_bad, const_cast<unsigned char*>(p + 500));
}

TEST_F(temp_free_part, is_verified_before_it_is_handed_out) {
    pmr_debug::temp_resource<> arena({.handler = &errors});
    volatile unsigned char* const p = take(arena);
    poke(p + 100);
    volatile unsigned char* const q = take(arena);
    expect_overrun(p + 100, const_cast<unsigned char*>(p));
    EXPECT_TRUE(q > p + 100 || q + 64 <= p + 100);  // not the dirty bytes
    give(arena, q);
    give(arena, p);
}

// What was handed out once, and rewound, is told as such.
TEST_F(temp_free_part, is_told_from_what_was_rewound) {
    pmr_debug::temp_resource<4096> arena({.handler = &errors});
    volatile unsigned char* p = nullptr;
    {
        const pmr_debug::temp_mark here(arena);
        p = take(arena);
    }
    poke(p + 5);
    poke(p + 1000);
    EXPECT_EQ(arena.check(), 2u);
    ASSERT_EQ(errors.size(), 2u);
    EXPECT_EQ(errors[0].facts.kind, error_kind::use_after_free);
    EXPECT_EQ(errors[1].facts.kind, error_kind::overrun);
    EXPECT_EQ(errors[1].facts.first_bad, const_cast<unsigned char*>(p + 1000));
}

// Of a large buffer only what lies ahead of the cursor is filled: the rest may be address space never to be touched.
TEST_F(temp_free_part, of_a_large_buffer_is_filled_ahead_of_the_cursor) {
    const std::size_t bytes = std::size_t{1} << 22;
    auto* const buffer = static_cast<unsigned char*>(std::pmr::new_delete_resource()->allocate(bytes, 16));
    std::memset(buffer, 7, bytes);
    {
        pmr_debug::temp_resource<> arena(buffer, bytes, {.handler = &errors});
        EXPECT_EQ(peek(buffer + bytes - 1), 7);
        EXPECT_EQ(peek(buffer + (std::size_t{1} << 17)), 7);
        for (int i = 0; i < 2000; ++i) {
            volatile unsigned char* const p = take(arena, 1000);
            const std::size_t ahead = static_cast<std::size_t>(p - buffer) + 16'000;
            EXPECT_EQ(peek(buffer + ahead), 0xDD) << i;
            give(arena, p, 1000);
        }
        EXPECT_EQ(errors.size(), 0u);
        volatile unsigned char* const p = take(arena, 1000);
        poke(p + 1000 + 16'000);
        give(arena, p, 1000);
        EXPECT_EQ(arena.check(), 1u);
        expect_overrun(p + 17'000, const_cast<unsigned char*>(p));
    }
    EXPECT_EQ(errors.size(), 0u);
    std::pmr::new_delete_resource()->deallocate(buffer, bytes, 16);
}

}  // namespace
