// A resource as the default one, in a fork, in its handler's hands, and after its death; its records' protection; and
// what reports look like.

#include "support/general_purpose.hpp"
#include "support/mask.hpp"
#include "support/odd_calls.hpp"

#include <sys/wait.h>

#include <array>
#include <cstdio>
#include <fstream>
#include <string>
#include <string_view>
#include <vector>

namespace {

using namespace test_support;
using pmr_debug::action;
using pmr_debug::collecting_handler;
using pmr_debug::error_kind;
using pmr_debug::general_purpose_resource;
using pmr_debug::page_resource;
using pmr_debug::report;

// ---- calls on the dead ----------------------------------------------------------------------------------------------

struct default_handler_scope {
    explicit default_handler_scope(pmr_debug::report_handler& h) { pmr_debug::set_default_report_handler(&h); }
    default_handler_scope(const default_handler_scope&) = delete;
    default_handler_scope& operator=(const default_handler_scope&) = delete;
    ~default_handler_scope() { pmr_debug::set_default_report_handler(nullptr); }
};

template <class Heap>
__attribute__((noinline)) Heap* gives_birth(void* place, page_resource& pages) {
    Heap* const heap = ::new (place) Heap(&pages, {.name = "late"});
    asm volatile("# birth" ::: "memory");
    return heap;
}
template <class Heap>
__attribute__((noinline)) void lets_die(Heap* heap) {
    heap->~Heap();
    asm volatile("# death" ::: "memory");
}

template <class Policy>
struct general_purpose_death : ::testing::Test {};
TYPED_TEST_SUITE(general_purpose_death, all_policies);

TYPED_TEST(general_purpose_death, later_calls_are_reported_with_birth_and_death) {
    using heap_type = typename TypeParam::resource;
    collecting_handler errors;
    const default_handler_scope scope(errors);
    page_resource pages;
    alignas(heap_type) std::array<std::byte, sizeof(heap_type)> place{};
    heap_type* const heap = gives_birth<heap_type>(place.data(), pages);
    void* const p = heap->allocate(64, 8);
    heap->deallocate(p, 64, 8);
    lets_die(heap);
    ASSERT_EQ(errors.count(), 0U);
    if (!still_callable(place.data())) {
        GTEST_SKIP() << "a sanitizer wiped the object";
    }
    free_late(place.data(), p, 64, 8);
    ASSERT_EQ(errors.count(error_kind::destroyed_resource), 1U);
    const report& r = errors.back().facts;
    expect_given(r, p, 64, 8);
    EXPECT_EQ(r.resource.name, "late");
    EXPECT_FALSE(r.resource.alive);
    expect_trace(r.here, 1, "free_late", "here");
    expect_trace(r.resource.born, 1, "gives_birth", "born");
    expect_trace(r.resource.died, 1, "lets_die", "died");
    EXPECT_THROW(static_cast<void>(allocate_late(place.data(), 64, 8)), std::bad_alloc);
    EXPECT_EQ(errors.count(error_kind::destroyed_resource), 2U);
    EXPECT_EQ(errors.count(), 2U);
}

// ---- as the default resource ----------------------------------------------------------------------------------------

struct default_resource_scope {
    explicit default_resource_scope(std::pmr::memory_resource& r) : before(std::pmr::set_default_resource(&r)) {}
    default_resource_scope(const default_resource_scope&) = delete;
    default_resource_scope& operator=(const default_resource_scope&) = delete;
    ~default_resource_scope() { std::pmr::set_default_resource(before); }
    std::pmr::memory_resource* before;
};

// Uses the default resource while it reports.
class busy_handler final : public pmr_debug::report_handler {
public:
    action handle(const report& r) noexcept override {
        ++calls;
        last = r.kind;
        std::pmr::vector<std::pmr::string> notes;
        for (int i = 0; i < 200; ++i) {
            notes.emplace_back("a note that is too long for the short string buffer");
        }
        return action::carry_on;
    }
    int calls = 0;
    error_kind last = error_kind::cycle;
};

template <class Policy>
struct general_purpose_default : ::testing::Test {};
TYPED_TEST_SUITE(general_purpose_default, checking_policies);

TYPED_TEST(general_purpose_default, handler_may_allocate_from_the_reporting_resource) {
    busy_handler errors;
    page_resource pages;
    typename TypeParam::resource heap(&pages, {.handler = &errors});
    const default_resource_scope scope(heap);
    void* const p = heap.allocate(64, 8);
    void* const q = heap.allocate(64, 8);
    heap.deallocate(p, 60, 8);
    EXPECT_EQ(errors.last, error_kind::size_mismatch);
    heap.deallocate(bytes_at(q, 8), 64, 8);
    EXPECT_EQ(errors.last, error_kind::interior_free);
    free_null(heap, 8, 8);
    EXPECT_EQ(errors.last, error_kind::null_free);
    EXPECT_THROW(static_cast<void>(allocate_odd(heap, 8, 3)), std::bad_alloc);
    EXPECT_EQ(errors.calls, 4);
    EXPECT_EQ(heap.report_leaks(), 1U);
    EXPECT_EQ(errors.calls, 5);
    heap.deallocate(q, 64, 8);
    if (TypeParam::rules.fill) {
        void* const r = heap.allocate(64, 8);
        void* const s = heap.allocate(64, 8);
        heap.deallocate(r, 64, 8);
        *bytes_at(r) = std::byte{1};
        EXPECT_EQ(heap.check(), 1U);
        EXPECT_EQ(errors.last, error_kind::write_after_free);
        heap.deallocate(s, 64, 8);
    }
    EXPECT_EQ(heap.stats().live_blocks, 0U);
}

TEST(general_purpose_default_once, containers_and_reports_with_the_resource_installed) {
    collecting_handler errors;
    general_purpose_resource heap({.name = "default", .handler = &errors});
    {
        const default_resource_scope scope(heap);
        std::pmr::vector<std::pmr::string> words(1'000, "a word that is too long for the short string buffer");
        void* const p = std::pmr::get_default_resource()->allocate(64, 8);
        frees_it_first(*std::pmr::get_default_resource(), p, 64);
        frees_it_again(*std::pmr::get_default_resource(), p, 64);
        EXPECT_EQ(errors.count(error_kind::double_free), 1U);
    }
    EXPECT_EQ(errors.count(), 1U);
    EXPECT_EQ(heap.stats().live_blocks, 0U);
}

TEST(general_purpose_fork, child_goes_on) {
    collecting_handler errors;
    page_resource pages;
    general_purpose_resource heap(&pages, {.handler = &errors});
    void* const before = heap.allocate(64, 8);
    std::memset(before, 5, 64);
    const pid_t child = ::fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
        bool good = all_are(before, 64, 5);
        for (int i = 0; i < 2'000; ++i) {
            heap.deallocate(heap.allocate(200, 8), 200, 8);
        }
        heap.deallocate(before, 64, 8);
        good = good && heap.stats().live_blocks == 0 && errors.count() == 0;
        heap.deallocate(before, 64, 8);
        good = good && errors.count(error_kind::double_free) == 1;
        ::_exit(good ? 0 : 1);
    }
    int status = -1;
    ASSERT_EQ(::waitpid(child, &status, 0), child);
    EXPECT_TRUE(WIFEXITED(status));
    EXPECT_EQ(WEXITSTATUS(status), 0);
    EXPECT_TRUE(all_are(before, 64, 5));
    heap.deallocate(before, 64, 8);
    EXPECT_EQ(errors.count(), 0U);
}

/// Bytes in mappings from that of \p p on to the next that is without permissions; \p writable: of those that may be
/// written to.
std::size_t mapped_from(const void* p, std::size_t& writable) {
    std::ifstream maps("/proc/self/maps");
    std::uintptr_t next = 0;
    std::size_t bytes = 0;
    writable = 0;
    for (std::string line; std::getline(maps, line);) {
        std::uintptr_t from = 0;
        std::uintptr_t to = 0;
        char permissions[5]{};
        std::sscanf(line.c_str(), "%zx-%zx %4s", &from, &to, permissions);
        const auto at = reinterpret_cast<std::uintptr_t>(p);
        if ((from <= at && at < to) || (from == next && permissions[0] == 'r')) {
            next = to;
            bytes += to - from;
            writable += permissions[1] == 'w' ? to - from : 0;
        }
    }
    return bytes;
}

TEST(general_purpose_protection, records_are_read_only_between_calls_under_the_thorough_policy) {
    page_resource pages;
    const auto core_of = [](const pmr_debug::general_purpose_resource_base& r) {
        void* core = nullptr;  // the object: a pointer to its functions, then this
        std::memcpy(&core, reinterpret_cast<const std::byte*>(&r) + sizeof(void*), sizeof core);
        return core;
    };
    pmr_debug::basic_general_purpose_resource<pmr_debug::thorough_policy> heap(&pages);
    general_purpose_resource open(&pages);
    EXPECT_TRUE(write_faults(core_of(heap)));
    EXPECT_FALSE(write_faults(core_of(open)));
    void* const p = heap.allocate(64, 8);
    EXPECT_TRUE(write_faults(core_of(heap)));
    heap.deallocate(p, 64, 8);
    EXPECT_TRUE(write_faults(core_of(heap)));
    static_cast<void>(heap.stats());
    EXPECT_EQ(heap.check(), 0U);
    EXPECT_TRUE(write_faults(core_of(heap)));
    // All that lies between the arena's guard pages, once there is more of it.
    std::vector<void*> blocks;
    for (int i = 0; i < 10'000; ++i) {
        blocks.push_back(heap.allocate(16, 8));
    }
    std::size_t writable = 0;
    EXPECT_GT(mapped_from(core_of(heap), writable), 10'000U * 16);
    EXPECT_EQ(writable, 0U);
    EXPECT_GT(mapped_from(core_of(open), writable), 0U);
    EXPECT_GT(writable, 0U);
    for (void* const block : blocks) {
        heap.deallocate(block, 16, 8);
    }
}

TEST(general_purpose_user_policy, of_any_valid_shape_links_and_works) {
    constexpr pmr_debug::policy mine{.threads = pmr_debug::threading::unchecked,
                                     .alloc_frames = 3,
                                     .free_frames = 0,
                                     .guard_bytes = 100,
                                     .fill = false,
                                     .freed = pmr_debug::reuse::quarantined};
    collecting_handler errors;
    pmr_debug::basic_general_purpose_resource<mine> heap({.handler = &errors});
    void* const p = allocates_the_block(heap, 64);
    EXPECT_TRUE(all_are(bytes_at(p, 64), 100, 0xAA));
    *bytes_at(p, 163) = std::byte{1};
    frees_it_first(heap, p, 64);
    frees_it_again(heap, p, 64);
    ASSERT_EQ(errors.count(error_kind::overrun), 1U);
    ASSERT_EQ(errors.count(error_kind::double_free), 1U);
    const report& r = errors.back().facts;
    EXPECT_LE(view(r.allocated).frames.size(), 6U);  // three of the program, and the standard library between them
    EXPECT_EQ(r.freed, pmr_debug::trace_id::none);
}

// ---- what reports look like -----------------------------------------------------------------------------------------

// The masked text as lines; of each trace only the first frame's function, as what follows depends on the compiler.
std::string outline(std::string_view text) {
    std::string all = mask(text);
    std::string kept;
    for (std::size_t at = 0; at < all.size();) {
        const std::size_t end = all.find('\n', at);
        std::string line = all.substr(at, end - at);
        at = end + 1;
        if (line.starts_with("    #0 ")) {
            kept += line.substr(0, line.find('(')) + '\n';
        } else if (!line.starts_with("    ") && !line.empty()) {
            for (const std::string_view label : {" #", "thread ", "reported by ", "allocated by ", "freed by "}) {
                for (std::size_t n = line.find(label); n != std::string::npos; n = line.find(label, n + 1)) {
                    const std::size_t from = n + label.size();
                    const std::size_t digits = line.find_first_not_of("0123456789", from);
                    if (digits != from) {
                        line.replace(from, (digits == std::string::npos ? line.size() : digits) - from, "N");
                    }
                }
            }
            kept += line + '\n';
        }
    }
    return kept;
}

TEST(general_purpose_text, double_free) {
    collecting_handler errors;
    general_purpose_resource heap({.name = "heap", .handler = &errors});
    void* const p = allocates_the_block(heap, 64);
    frees_it_first(heap, p, 64);
    frees_it_again(heap, p, 64);
    EXPECT_EQ(outline(errors.back().text),
              "pmr_debug: double_free: 64-byte block 0x* was freed twice\n"
              "  resource   \"heap\" (general_purpose_resource #N at 0x*)\n"
              "  block      0x*, 64 bytes, alignment 8, serial 1, freed\n"
              "  given      size 64, alignment 8\n"
              "  threads    reported by N, allocated by N, freed by N\n"
              "  here:\n"
              "    #0 test_support::frees_it_again\n"
              "  allocated by thread N:\n"
              "    #0 test_support::allocates_the_block\n"
              "  first freed by thread N:\n"
              "    #0 test_support::frees_it_first\n"
              "  hint: two owners hold this pointer; one of them must give it up\n");
}

TEST(general_purpose_text, overrun) {
    collecting_handler errors;
    general_purpose_resource heap({.name = "heap", .handler = &errors});
    void* const p = allocates_the_block(heap, 70);
    *bytes_at(p, 72) = std::byte{0x42};
    frees_it_first(heap, p, 70);
    EXPECT_EQ(outline(errors.back().text),
              "pmr_debug: overrun: 70-byte block 0x* was written past its end: 1 byte changed, the first one 2 bytes "
              "past its end\n"
              "  resource   \"heap\" (general_purpose_resource #N at 0x*)\n"
              "  block      0x*, 70 bytes, alignment 8, serial 1, freed\n"
              "  first bad  0x*, 2 bytes past the end of the block: found 0x*, expected 0x*; 1 byte damaged\n"
              "  threads    reported by N, allocated by N, freed by N\n"
              "  here:\n"
              "    #0 test_support::frees_it_first\n"
              "  allocated by thread N:\n"
              "    #0 test_support::allocates_the_block\n"
              "  freed by thread N:\n"
              "    #0 test_support::frees_it_first\n"
              "  hint: an index or length is too large; look at what writes to the end of this block\n");
}

TEST(general_purpose_text, leak) {
    collecting_handler errors;
    {
        general_purpose_resource heap({.name = "heap", .handler = &errors});
        const volatile int times = 3;  // unrolled, the loop would be three call paths
        for (int i = 0; i < times; ++i) {
            static_cast<void>(allocates_the_block(heap, 64));
        }
        static_cast<void>(allocates_another(heap, 8));
    }
    const std::string text = outline(errors.back().text);
    const std::string start =
        "pmr_debug: leak: 200 bytes in 4 blocks were never freed\n"
        "  resource   \"heap\" (general_purpose_resource #N at 0x*)\n"
        "  threads    reported by N\n"
        "  leak 1 of 2: 192 bytes in 3 blocks, for example 0x* (64 bytes), allocated:\n"
        "    #0 test_support::allocates_the_block\n"
        "  leak 2 of 2: 8 bytes in 1 block, 0x*, allocated:\n"
        "    #0 test_support::allocates_another\n";
    EXPECT_EQ(text.substr(0, start.size()), start);
    EXPECT_NE(text.find("  hint: every allocate needs one deallocate"), std::string::npos);
}

}  // namespace
