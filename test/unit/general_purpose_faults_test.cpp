// What a general-purpose resource says about addresses, for fault reports.

#include "metadata/registry.hpp"
#include "support/call_here.hpp"
#include "support/trace_contains.hpp"

#include <pmr_debug/collecting_handler.hpp>
#include <pmr_debug/general_purpose_resource.hpp>
#include <pmr_debug/page_resource.hpp>

#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <vector>

namespace {

using finding = pmr_debug::metadata::address_finding;
using test_support::allocate_here;
using test_support::free_here;
using test_support::trace_contains;

struct general_purpose_faults : ::testing::Test {
    pmr_debug::collecting_handler errors;
    pmr_debug::page_resource pages;

    static bool ask(const std::pmr::memory_resource& resource, const void* p, finding& f) {
        pmr_debug::metadata::resource_record* const r = pmr_debug::metadata::find_resource(&resource);
        return r->describe_address.load()(r->core, reinterpret_cast<std::uintptr_t>(p), &f);
    }
    static finding find(const std::pmr::memory_resource& resource, const void* p) {
        finding f;
        EXPECT_TRUE(ask(resource, p, f));
        return f;
    }
    static unsigned char* bytes(void* p) { return static_cast<unsigned char*>(p); }
};

TEST_F(general_purpose_faults, live_and_freed_blocks) {
    pmr_debug::general_purpose_resource heap(&pages, {.handler = &errors});
    void* const p = allocate_here(heap, 50, 8);
    finding f = find(heap, bytes(p) + 3);
    EXPECT_EQ(f.is, finding::what::live_block);
    EXPECT_EQ(f.block.address, p);
    EXPECT_EQ(f.block.size, 50U);
    EXPECT_EQ(f.block.alignment, 8U);
    EXPECT_EQ(f.distance, 3);
    EXPECT_TRUE(trace_contains(f.allocated, "allocate_here"));
    EXPECT_EQ(f.freed, pmr_debug::trace_id::none);
    f = find(heap, bytes(p) + 52);
    EXPECT_EQ(f.is, finding::what::guard_after);
    EXPECT_EQ(f.distance, 2);
    free_here(heap, p, 50, 8);
    f = find(heap, p);
    EXPECT_EQ(f.is, finding::what::freed_block);
    EXPECT_EQ(f.distance, 0);
    EXPECT_TRUE(trace_contains(f.freed, "free_here"));
    EXPECT_EQ(errors.count(), 0U);
}

TEST_F(general_purpose_faults, large_blocks) {
    pmr_debug::general_purpose_resource heap(&pages, {.handler = &errors});
    for (const std::size_t size : {std::size_t{100'000}, std::size_t{40} << 20}) {
        void* const p = allocate_here(heap, size, 8);
        finding f = find(heap, bytes(p) + size - 1);
        EXPECT_EQ(f.is, finding::what::live_block);
        EXPECT_EQ(f.block.size, size);
        EXPECT_EQ(f.distance, static_cast<std::ptrdiff_t>(size - 1));
        free_here(heap, p, size, 8);
        f = find(heap, bytes(p) + size - 1);  // trapped: the question must not touch it
        EXPECT_EQ(f.is, finding::what::freed_block);
        EXPECT_EQ(f.block.address, p);
        EXPECT_TRUE(trace_contains(f.freed, "free_here"));
    }
}

TEST_F(general_purpose_faults, trapped_units_and_forgotten_ones) {
    for (const std::size_t kept : {std::size_t{8} << 20, std::size_t{1}}) {
        pmr_debug::general_purpose_resource heap(&pages, {.handler = &errors, .retired_record_bytes = kept});
        std::vector<void*> all;
        for (int i = 0; i < 50'000; ++i) {
            all.push_back(heap.allocate(64, 8));
        }
        for (void* const p : all) {
            heap.deallocate(p, 64, 8);
        }
        const finding f = find(heap, bytes(all[100]) + 4);
        if (kept == 1) {
            EXPECT_EQ(f.is, finding::what::retired_unit);
        } else {
            EXPECT_EQ(f.is, finding::what::freed_block);
            EXPECT_EQ(f.block.address, all[100]);
            EXPECT_EQ(f.distance, 4);
        }
    }
}

TEST_F(general_purpose_faults, what_was_never_handed_out_and_what_is_not_its_own) {
    pmr_debug::general_purpose_resource heap(&pages, {.handler = &errors});
    void* const p = heap.allocate(16, 8);
    EXPECT_EQ(find(heap, bytes(p) + 256).is, finding::what::never_used);
    finding f;
    EXPECT_FALSE(ask(heap, &f, f));
    heap.deallocate(p, 16, 8);
}

}  // namespace
