// Private memory for records runs out while the upstream still has memory: its address range is full, or the system
// gives it no more pages. The allocation ends in bad_alloc and changes nothing, the upstream gets back what it gave,
// misuse is still reported, and what is freed makes room.

#include "faulty_upstream.hpp"
#include "metadata/arena_limit.hpp"
#include "subjects.hpp"

#include <gtest/gtest.h>

#include <cstdint>
#include <cstring>
#include <memory>
#include <vector>

namespace {

using namespace injection;

enum class shortage {
    full_range,  ///< an arena may hold little, and that is used up
    no_pages,    ///< the system makes no more of it accessible
};

/// Keeps the facts of reports in ordinary memory: a collecting_handler needs private memory itself.
class fact_keeper final : public report_handler {
public:
    std::vector<report> all;
    action handle(const report& r) noexcept override {
        all.push_back(r);
        return action::carry_on;
    }
};

class records_exhausted : public ::testing::Test {
protected:
    struct block {
        unsigned char* p;
        std::size_t bytes;
        unsigned char value;
    };

    /// Effects: makes the resource with little private address space.
    template <class Subject, class Options>
    static void make_small(std::unique_ptr<Subject>& s, const Options& o) {
        metadata::limit_arenas(std::size_t{1} << 20);
        s = std::make_unique<Subject>(o);
        metadata::limit_arenas(SIZE_MAX);
    }

    template <class Resource>
    bool allocate(Resource& resource, std::size_t bytes) {
        try {
            auto* const p = static_cast<unsigned char*>(resource.allocate(bytes, 8));
            const auto value = static_cast<unsigned char>(held.size() * 37 | 1);
            std::memset(p, value, bytes);
            held.push_back({p, bytes, value});
            return true;
        } catch (const std::bad_alloc&) {
            return false;
        }
    }

    static bool intact(const block& b) { return b.p[0] == b.value && std::memcmp(b.p, b.p + 1, b.bytes - 1) == 0; }

    /// \p forgetful: a freed block may be unknown afterwards, as there was no room to remember it.
    template <class Subject, class Options>
    void run_out(Options o, shortage how, bool forgetful = false, std::size_t bytes = 100) {
        o.handler = &reports;
        auto s = std::make_unique<Subject>(o);
        s->resource.deallocate(s->resource.allocate(bytes, 8), bytes, 8);  // process-wide memory
        s.reset();
        if (how == shortage::full_range) {
            make_small(s, o);
        } else {
            s = std::make_unique<Subject>(o);
        }
        auto& resource = s->resource;
        ASSERT_TRUE(allocate(resource, bytes));
        const std::uint64_t first = how == shortage::no_pages ? 1 : 0;
        const faults armed({.calls = only(call::protect), .first = first, .last = UINT64_MAX});
        constexpr std::size_t most = 200'000;
        while (held.size() < most && allocate(resource, bytes)) {
        }
        ASSERT_LT(held.size(), most) << "never refused";
        EXPECT_GT(held.size(), 100U);
        refused_again(*s, bytes);

        // What is there is known as before.
        const block twice = held.back();
        held.pop_back();
        EXPECT_TRUE(intact(twice));
        resource.deallocate(twice.p, bytes, 8);
        resource.deallocate(twice.p, bytes, 8);
        ASSERT_EQ(reports.all.size(), 1U);
        const error_kind kind = reports.all[0].kind;
        EXPECT_TRUE(kind == error_kind::double_free || (forgetful && kind == error_kind::invalid_free))
            << to_string(kind);
        EXPECT_EQ(reports.all[0].pointer, twice.p);
        reports.all.clear();
        const block wrong = held.back();
        held.pop_back();
        resource.deallocate(wrong.p, bytes - 1, 8);
        ASSERT_EQ(reports.all.size(), 1U);
        EXPECT_EQ(reports.all[0].kind, error_kind::size_mismatch);
        EXPECT_EQ(reports.all[0].block.address, wrong.p);
        EXPECT_EQ(reports.all[0].block.size, bytes);
        EXPECT_EQ(resource.stats().live_blocks, held.size());
        reports.all.clear();

        // Room again.
        for (const block& b : held) {
            EXPECT_TRUE(intact(b));
            resource.deallocate(b.p, b.bytes, 8);
        }
        held.clear();
        EXPECT_EQ(resource.stats().live_blocks, 0U);
        EXPECT_EQ(resource.stats().live_bytes, 0U);
        if constexpr (requires { resource.release(); }) {
            resource.release();
        }
        EXPECT_TRUE(allocate(resource, bytes)) << "after all was freed";
        for (const block& b : held) {
            resource.deallocate(b.p, b.bytes, 8);
        }
        held.clear();
        if constexpr (requires { resource.check(); }) {
            EXPECT_EQ(resource.check(), 0U);
        }
        EXPECT_EQ(reports.all.size(), 0U);
        EXPECT_EQ(s->end(), 0U) << "blocks the upstream did not get back";
        EXPECT_EQ(s->upstream.wrong_frees, 0U);
        EXPECT_EQ(reports.all.size(), 0U);
        EXPECT_EQ(faults::injected() != 0, how == shortage::no_pages);
    }

    template <class Subject>
    void refused_again(Subject& s, std::size_t bytes) {
        const statistics before = s.resource.stats();
        const std::size_t given = s.upstream.live();
        EXPECT_EQ(before.live_blocks, held.size());
        for (int i = 0; i < 3; ++i) {
            EXPECT_FALSE(allocate(s.resource, bytes));
        }
        const statistics after = s.resource.stats();
        EXPECT_EQ(after.live_blocks, before.live_blocks);
        EXPECT_EQ(after.live_bytes, before.live_bytes);
        EXPECT_EQ(after.total_allocations, before.total_allocations);
        EXPECT_EQ(after.failed_allocations, before.failed_allocations + 3);
        EXPECT_EQ(s.upstream.live(), given);
        EXPECT_EQ(reports.all.size(), 0U);
    }

    fact_keeper reports;
    std::vector<block> held;
};

template <policy P>
using heap = over_faulty<basic_general_purpose_resource<P>, general_purpose_options>;
// Of one table each, not of 64: another block may find room in another.
using tracking = over_faulty<basic_tracking_resource<single_policy>, tracking_options>;
using canary = over_faulty<basic_canary_resource<single_policy>, canary_options>;
template <policy P>
using fence = over_faulty<basic_end_of_page_resource<P>, end_of_page_options>;
using temp = over_faulty<temp_resource<>, temp_options>;

TEST_F(records_exhausted, heap_full_range) {
    run_out<heap<default_policy>>(general_purpose_options{}, shortage::full_range);
}
// Larger blocks have fewer records a unit: the last 64 pieces given up wait a while, for a call that still looks at
// them.
TEST_F(records_exhausted, heap_no_pages) {
    run_out<heap<default_policy>>(general_purpose_options{}, shortage::no_pages, false, 1000);
}
TEST_F(records_exhausted, heap_single_checked) {
    run_out<heap<single_policy>>(general_purpose_options{}, shortage::full_range);
}
TEST_F(records_exhausted, heap_immediate) {
    run_out<heap<immediate_policy>>(general_purpose_options{}, shortage::full_range);
    run_out<heap<immediate_policy>>(general_purpose_options{}, shortage::no_pages);
}
TEST_F(records_exhausted, heap_quarantined) {
    run_out<heap<quarantined_policy>>(general_purpose_options{.quarantine_bytes = quarantine}, shortage::full_range);
}
TEST_F(records_exhausted, heap_keeping) {
    run_out<heap<keeping_policy>>(general_purpose_options{}, shortage::full_range);
}
TEST_F(records_exhausted, heap_thorough) {
    run_out<heap<thorough_policy>>(general_purpose_options{}, shortage::full_range);
}
// The records of large blocks are their units.
TEST_F(records_exhausted, heap_large_blocks) {
    run_out<heap<default_policy>>(general_purpose_options{}, shortage::full_range, false, 20'000);
}
TEST_F(records_exhausted, tracking_full_range) {
    run_out<tracking>(tracking_options{}, shortage::full_range, true);
}
TEST_F(records_exhausted, tracking_no_pages) {
    run_out<tracking>(tracking_options{}, shortage::no_pages, true);
}
TEST_F(records_exhausted, canary_full_range) {
    run_out<canary>(canary_options{}, shortage::full_range, true);
}
TEST_F(records_exhausted, canary_no_pages) {
    run_out<canary>(canary_options{}, shortage::no_pages, true);
}
TEST_F(records_exhausted, canary_without_quarantine) {
    run_out<canary>(canary_options{.quarantine_bytes = 0}, shortage::full_range, true);
}
TEST_F(records_exhausted, end_of_page_full_range) {
    run_out<fence<default_policy>>(end_of_page_options{}, shortage::full_range);
}
TEST_F(records_exhausted, end_of_page_no_pages) {
    run_out<fence<default_policy>>(end_of_page_options{}, shortage::no_pages);
}
// Within a guarded range retired strips, which are never used again, are forgotten for new ones.
TEST_F(records_exhausted, end_of_page_range_goes_on) {
    static_cast<void>(end_of_page_resource());  // process-wide memory
    std::unique_ptr<end_of_page_resource> made;
    make_small(made,
               end_of_page_options{
                   .handler = &reports, .address_space_bytes = std::size_t{1} << 33, .retired_record_bytes = SIZE_MAX});
    end_of_page_resource& resource = *made;
    const auto use_up = [&] {
        for (int i = 0; i < 100'000; ++i) {
            resource.deallocate(resource.allocate(10, 8), 10, 8);
        }
    };
    EXPECT_NO_THROW(use_up());
    EXPECT_EQ(resource.stats().live_blocks, 0U);
    EXPECT_LT(resource.stats().overhead_bytes, std::size_t{2} << 20);
    EXPECT_EQ(reports.all.size(), 0U);
}
// Blocks of an arena die together: release() makes room.
TEST_F(records_exhausted, temp_no_pages) {
    run_out<temp>(temp_options{}, shortage::no_pages);
}

}  // namespace
