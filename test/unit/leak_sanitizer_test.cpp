// LeakSanitizer finds pointers in memory of page_resource, so that what they own is no false leak.

#include <pmr_debug/general_purpose_resource.hpp>
#include <pmr_debug/page_resource.hpp>
#include <pmr_debug/temp_resource.hpp>

#include <gtest/gtest.h>

#if defined(__SANITIZE_ADDRESS__)
#define TEST_HAS_LSAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define TEST_HAS_LSAN 1
#endif
#endif
#ifndef TEST_HAS_LSAN
#define TEST_HAS_LSAN 0
#endif

#if TEST_HAS_LSAN
#include <sanitizer/lsan_interface.h>
#include <sys/mman.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#endif

namespace {

#if TEST_HAS_LSAN

constexpr std::uintptr_t disguise = 0x5555'5555'5555'5555;

/// Effects: puts the only pointer to a malloc'ed block at \p place. Returns: it, disguised.
__attribute__((noinline)) std::uintptr_t own_from(void* place) {
    void* const owned = std::malloc(1000);
    std::memcpy(place, &owned, sizeof owned);
    const std::uintptr_t hidden = reinterpret_cast<std::uintptr_t>(owned) ^ disguise;
    asm volatile("" : : "r"(hidden) : "memory");
    return hidden;
}

/// Effects: overwrites what calls before have left on the stack.
__attribute__((noinline)) void sweep_stack() {
    volatile char old[16'384];
    for (volatile char& c : old) {
        c = 0;
    }
}

/// True if LeakSanitizer takes a block for leaked whose only pointer is at \p place.
__attribute__((noinline)) bool leaks_if_owned_from(void* place) {
    const std::uintptr_t hidden = own_from(place);
    sweep_stack();
    const bool leaks = __lsan_do_recoverable_leak_check() != 0;
    std::free(reinterpret_cast<void*>(hidden ^ disguise));
    std::memset(place, 0, sizeof(void*));
    return leaks;
}

TEST(leak_sanitizer, does_not_look_into_pages_on_its_own) {
    void* const p = ::mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    EXPECT_TRUE(leaks_if_owned_from(p));
    ::munmap(p, 4096);
}

TEST(leak_sanitizer, finds_pointers_in_pages_of_a_page_resource) {
    pmr_debug::page_resource pages;
    auto* const p = static_cast<std::byte*>(pages.allocate(10'000, 8));
    EXPECT_FALSE(leaks_if_owned_from(p + 9'000));
    if (pages.resize(p, 10'000, 4'000)) {
        EXPECT_FALSE(leaks_if_owned_from(p + 3'000));
    }
    pages.deallocate(p, 4'000, 8);
    EXPECT_TRUE(pages.ok());
    static_cast<void>(pages.allocate(5'000, 8));  // goes with the resource, which reports it
}

// A guard marker looks readable and is not: the sanitizer would die of it.
TEST(leak_sanitizer, looks_past_guards_in_pages) {
    pmr_debug::page_resource pages;
    pmr_debug::general_purpose_resource heap(&pages);
    heap.deallocate(heap.allocate(100'000, 8), 100'000, 8);
    EXPECT_EQ(__lsan_do_recoverable_leak_check(), 0);
}

TEST(leak_sanitizer, finds_pointers_in_blocks_over_a_page_resource) {
    pmr_debug::page_resource pages;
    pmr_debug::general_purpose_resource resource(&pages);
    for (const std::size_t bytes : {std::size_t{64}, std::size_t{100'000}}) {
        void* const p = resource.allocate(bytes, 8);
        EXPECT_FALSE(leaks_if_owned_from(p));
        resource.deallocate(p, bytes, 8);
    }
}

// What guards take beyond the buffer lies in pages of the arena's own.
TEST(leak_sanitizer, finds_pointers_in_what_guards_push_out_of_an_arenas_buffer) {
    alignas(64) static std::byte buffer[1024];
    pmr_debug::temp_resource arena(buffer, sizeof buffer);
    for (int i = 0; i < 2; ++i) {  // pages that went back are no roots any more: LeakSanitizer would read them
        void* p = nullptr;
        do {
            p = arena.allocate(64, 8);
        } while (p >= buffer && p < buffer + sizeof buffer);
        EXPECT_FALSE(leaks_if_owned_from(p));
        arena.release();
    }
    EXPECT_TRUE(arena.ok());
}

#else

TEST(leak_sanitizer, needs_a_build_with_address_sanitizer) {
    GTEST_SKIP() << "this build has no LeakSanitizer";
}

#endif

}  // namespace
