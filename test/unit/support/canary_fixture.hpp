#pragma once

// What the tests of the canary resource share: stray writes, and upstreams that note what they get back or lie.

#include <pmr_debug/canary_resource.hpp>
#include <pmr_debug/collecting_handler.hpp>

#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory_resource>
#include <vector>

namespace test_support {

/// Writes where the compiler would not let it: the address is hidden from it.
__attribute__((noinline)) inline void stray_write(void* p, std::ptrdiff_t offset, std::uint8_t value) {
    auto* at = static_cast<volatile std::uint8_t*>(p) + offset;
    asm volatile("" : "+r"(at) : : "memory");
    *at = value;
}

/// Reads in the same way.
__attribute__((noinline)) inline std::uint8_t stray_read(const void* p, std::ptrdiff_t offset) {
    const auto* at = static_cast<const volatile std::uint8_t*>(p) + offset;
    asm volatile("" : "+r"(at) : : "memory");
    return *at;
}

/// Changes one byte, whatever it was. Returns: what it was.
inline std::uint8_t damage(void* p, std::ptrdiff_t offset) {
    const std::uint8_t was = stray_read(p, offset);
    stray_write(p, offset, static_cast<std::uint8_t>(was ^ 1U));
    return was;
}

/// Forwards to new_delete_resource, or answers what it is told to; notes what it gets back.
class noting_upstream final : public std::pmr::memory_resource {
public:
    struct call {
        void* p;
        std::size_t bytes;
        std::size_t alignment;
        friend bool operator==(const call&, const call&) = default;
    };
    std::function<void*(std::size_t, std::size_t)> answer;
    std::vector<call> given;
    std::vector<call> back;

private:
    void* do_allocate(std::size_t bytes, std::size_t alignment) override {
        void* const p = answer ? answer(bytes, alignment) : std::pmr::new_delete_resource()->allocate(bytes, alignment);
        given.push_back({p, bytes, alignment});
        return p;
    }
    void do_deallocate(void* p, std::size_t bytes, std::size_t alignment) override {
        back.push_back({p, bytes, alignment});
        if (!answer) {
            std::pmr::new_delete_resource()->deallocate(p, bytes, alignment);
        }
    }
    [[nodiscard]] bool do_is_equal(const std::pmr::memory_resource& other) const noexcept override {
        return this == &other;
    }
};

/// The one report there should be.
inline const pmr_debug::report& only(const pmr_debug::collecting_handler& errors) {
    static const pmr_debug::report none{};
    EXPECT_EQ(errors.count(), 1U);
    return errors.size() != 0 ? errors[0].facts : none;
}

}  // namespace test_support
