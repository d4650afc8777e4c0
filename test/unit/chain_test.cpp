#include <pmr_debug/chain.hpp>
#include <pmr_debug/collecting_handler.hpp>
#include <pmr_debug/end_of_page_resource.hpp>
#include <pmr_debug/general_purpose_resource.hpp>
#include <pmr_debug/limit_resource.hpp>
#include <pmr_debug/page_resource.hpp>
#include <pmr_debug/temp_resource.hpp>
#include <pmr_debug/tracking_resource.hpp>

#include "support/mask.hpp"

#include <gtest/gtest.h>

#include <cstddef>
#include <memory>
#include <memory_resource>
#include <new>
#include <optional>
#include <string>
#include <string_view>

namespace {

using pmr_debug::collecting_handler;
using pmr_debug::error_kind;
using pmr_debug::limit_resource;
using pmr_debug::tracking_resource;

std::string chain_of(const std::pmr::memory_resource& r) {
    std::string text;
    pmr_debug::write_chain(
        r, [](std::string_view piece, void* context) noexcept { static_cast<std::string*>(context)->append(piece); },
        &text);
    return text;
}

// `#12` as `#*`.
std::string no_numbers(const std::string& text) {
    std::string masked;
    for (std::size_t i = 0; i < text.size(); ++i) {
        masked += text[i];
        if (text[i] == '#') {
            masked += '*';
            while (i + 1 < text.size() && text[i + 1] >= '0' && text[i + 1] <= '9') {
                ++i;
            }
        }
    }
    return test_support::mask(masked);
}

TEST(write_chain, shows_names_kinds_and_sizes_down_to_the_pages) {
    pmr_debug::page_resource pages({.name = "pages"});
    pmr_debug::general_purpose_resource heap(&pages, {.name = "heap"});
    limit_resource budget(&heap, {.limit_bytes = 1 << 20});
    tracking_resource index(&budget, {.name = "index"});
    void* const p = index.allocate(100, 4);
    const std::string text = no_numbers(chain_of(index));
    const std::string expected =
        "\"index\" (tracking_resource #*): 100 bytes live in 1 block\n"
        "└── limit_resource #*: 100 bytes live in 1 block\n"
        "    └── \"heap\" (general_purpose_resource #*): 100 bytes live in 1 block\n"
        "        └── \"pages\" (page_resource #*): ";
    EXPECT_EQ(text.substr(0, expected.size()), expected) << text;
    index.deallocate(p, 100, 4);
}

TEST(write_chain, shows_sizes_of_arenas_and_guarded_blocks) {
    pmr_debug::end_of_page_resource fence({.name = "fence"});
    pmr_debug::temp_resource arena(&fence, {.name = "arena", .first_chunk_bytes = 4096});
    static_cast<void>(arena.allocate(100, 4));
    EXPECT_EQ(no_numbers(chain_of(arena)),
              "\"arena\" (temp_resource #*): 100 bytes live in 1 block\n"
              "└── \"fence\" (end_of_page_resource #*): 4.0 KiB live in 1 block\n");
    arena.release();
}

TEST(write_chain, names_what_is_not_of_this_library) {
    EXPECT_EQ(chain_of(*std::pmr::new_delete_resource()), "std::pmr::new_delete_resource()\n");
    EXPECT_EQ(chain_of(*std::pmr::null_memory_resource()), "std::pmr::null_memory_resource()\n");
    std::pmr::unsynchronized_pool_resource pool;
    tracking_resource top(&pool, {.name = "top"});
    EXPECT_EQ(no_numbers(chain_of(top)),
              "\"top\" (tracking_resource #*): 0 bytes live in 0 blocks\n└── memory_resource at 0x*\n");
}

// Line c: a → b → a, as members that name each other make it.
template <class Resource, class Options>
void build_a_circle(collecting_handler& errors, const Options& options) {
    alignas(Resource) std::byte place[sizeof(Resource)];
    Resource first(static_cast<std::pmr::memory_resource*>(reinterpret_cast<Resource*>(place)), options);
    EXPECT_EQ(errors.count(), 0U);
    auto* const second = ::new (place) Resource(static_cast<std::pmr::memory_resource*>(&first), options);
    EXPECT_EQ(errors.count(error_kind::cycle), 1U);
    EXPECT_EQ(errors.back().facts.resource.address, static_cast<std::pmr::memory_resource*>(second));
    pmr_debug::set_default_report_handler(&errors);
    const std::string text = chain_of(*second);
    pmr_debug::set_default_report_handler(nullptr);
    EXPECT_EQ(errors.count(error_kind::cycle), 2U) << text;
    EXPECT_NE(text.find(": a cycle\n"), std::string::npos) << text;
    EXPECT_LE(text.size(), 600U) << text;
    std::destroy_at(second);
    EXPECT_EQ(errors.count(), 2U);
}

TEST(chain_cycle, tracking_resources_that_stand_on_each_other_c) {
    collecting_handler errors;
    build_a_circle<tracking_resource>(errors, pmr_debug::tracking_options{.name = "a", .handler = &errors});
}

TEST(chain_cycle, general_purpose_resources_that_stand_on_each_other_c) {
    collecting_handler errors;
    build_a_circle<pmr_debug::general_purpose_resource>(
        errors, pmr_debug::general_purpose_options{.name = "a", .handler = &errors});
}

TEST(chain_cycle, end_of_page_resources_that_stand_on_each_other_c) {
    collecting_handler errors;
    build_a_circle<pmr_debug::end_of_page_resource>(errors,
                                                    pmr_debug::end_of_page_options{.name = "a", .handler = &errors});
}

TEST(chain_cycle, arenas_that_stand_on_each_other_c) {
    collecting_handler errors;
    build_a_circle<pmr_debug::temp_resource<>>(errors, pmr_debug::temp_options{.name = "a", .handler = &errors});
}

TEST(chain_cycle, a_place_used_again_is_no_circle) {
    collecting_handler errors;
    std::optional<tracking_resource> place;
    place.emplace(pmr_debug::tracking_options{.name = "first", .handler = &errors});
    place.emplace(pmr_debug::tracking_options{.name = "second", .handler = &errors});
    tracking_resource top(&*place, {.handler = &errors});
    tracking_resource other(&top, {.handler = &errors});
    EXPECT_EQ(errors.count(), 0U);
}

}  // namespace
