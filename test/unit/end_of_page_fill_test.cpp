// What an end-of-page resource writes into blocks and around them, and that it looks at it again after a free.

#include "support/end_of_page.hpp"

#include <cstdlib>

namespace {

using namespace test_support::end_of_page;

__attribute__((noinline, no_sanitize("address", "thread"))) unsigned char peek(const volatile unsigned char* p) {
    return *p;
}

TEST(end_of_page_fill, fresh_blocks_of_any_size_are_filled_at_both_ends) {
    for (const placement where : {placement::before_guard, placement::after_guard}) {
        end_of_page_resource resource({.where = where});
        for (const std::size_t n : {1u, 16u, 4000u, 4095u, 4096u, 4097u, 5000u, 8192u, 8193u, 100'000u, 262'144u,
                                    2'097'152u, 4'194'304u, 4'194'305u}) {
            auto* const p = bytes(resource.allocate(n, 16));
            const std::size_t end = n < 256 ? n : 256;
            for (std::size_t i = 0; i < end; ++i) {
                ASSERT_EQ(peek(p + i), 0xAA) << n;
                ASSERT_EQ(peek(p + n - 1 - i), 0xAA) << n;
            }
            resource.deallocate(p, n, 16);
        }
    }
}

// Effects: frees a block of \p size bytes, then writes at \p offset from its start. Returns: what a check finds.
template <class Resource>
void expect_found_after_free(Resource& resource, collecting_handler& errors, std::size_t size, std::ptrdiff_t offset) {
    auto* const p = bytes(resource.allocate(size, 16));
    void* const keeps_the_strip = resource.allocate(16, 16);
    resource.deallocate(p, size, 16);
    touch(p + offset, access::write);
    EXPECT_EQ(resource.check(), 1u) << offset;
    ASSERT_EQ(errors.size(), 1u) << offset;
    const report& r = errors[0].facts;
    EXPECT_EQ(r.kind, error_kind::write_after_free);
    EXPECT_EQ(r.first_bad, p + offset);
    EXPECT_EQ(r.expected_value, 0xAA);
    EXPECT_EQ(r.bad_bytes, 1u);
    EXPECT_EQ(r.block.size, size);
    errors.clear();
    resource.deallocate(keeps_the_strip, 16, 16);
}

TEST_F(fence, the_bytes_up_to_the_alignment_are_verified_after_a_free) {
    expect_found_after_free(resource, errors, 60, 61);
    expect_found_after_free(resource, errors, 1, 15);
}

TEST_F(fence, the_canary_is_verified_after_a_free) {
    expect_found_after_free(resource, errors, 64, -1);
    expect_found_after_free(resource, errors, 64, -200);
}

TEST_F(fence_before, the_canary_is_verified_after_a_free) {
    expect_found_after_free(resource, errors, 60, 60);
    expect_found_after_free(resource, errors, 60, 200);
}

TEST(end_of_page_fill, over_an_upstream_the_canaries_are_verified_after_a_free) {
    collecting_handler errors;
    end_of_page_resource resource(std::pmr::new_delete_resource(), {.handler = &errors});
    expect_found_after_free(resource, errors, 64, 70);
    expect_found_after_free(resource, errors, 64, -3);
}

TEST(end_of_page_fill, the_canaries_are_verified_before_a_slot_is_used_again) {
    constexpr policy again{.freed = pmr_debug::reuse::immediate};
    collecting_handler errors;
    basic_end_of_page_resource<again> resource({.handler = &errors});
    auto* const p = bytes(resource.allocate(60, 16));
    resource.deallocate(p, 60, 16);
    touch(p + 62, access::write);
    void* const q = resource.allocate(60, 16);
    EXPECT_NE(p, q);
    EXPECT_EQ(errors.count(error_kind::write_after_free), 1u);
    resource.deallocate(q, 60, 16);
}

// The last block of a strip is freed: the strip is looked at as a whole.
TEST(end_of_page_fill, the_canaries_are_verified_when_a_strip_dies) {
    collecting_handler errors;
    unsigned char* p = nullptr;
    {
        end_of_page_resource resource({.handler = &errors});
        p = bytes(resource.allocate(60, 16));
        resource.deallocate(p, 60, 16);
        touch(p + 63, access::write);
        for (int i = 0; i < 600; ++i) {
            resource.deallocate(resource.allocate(60, 16), 60, 16);
        }
        EXPECT_EQ(errors.count(error_kind::write_after_free), 1u);
    }
    EXPECT_EQ(errors.size(), 1u);
}

}  // namespace
