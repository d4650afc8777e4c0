// Every system call that a resource makes is made to fail, one by one, and all from each one on. Nothing crashes, no
// block is lost, a refused allocation changes nothing, nothing is reported, and all memory is given back.

#include "metadata/address_map.hpp"
#include "stack/recent.hpp"
#include "subjects.hpp"

#include <gtest/gtest.h>

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <string>

namespace {

using namespace injection;
class system_calls : public ::testing::Test {
protected:
    static void SetUpTestSuite() {
        // The parts of the address map that the subjects may need, so that what is mapped at the end of a run can be
        // compared with what was before: below the lowest mapping, and where the heap, which starts anywhere, grows.
        constexpr std::uintptr_t step = std::uintptr_t{256} << 20;
        const auto enter = [](std::uintptr_t address) {
            metadata::address_range r{.base = address & ~std::uintptr_t{4095}, .size = 4096};
            metadata::address_map::insert(r);
            metadata::address_map::erase(r);
        };
        void* const top = ::mmap(nullptr, 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        for (std::uintptr_t back = 0; back < 1024 * step; back += step) {
            enter(reinterpret_cast<std::uintptr_t>(top) - back);
        }
        for (std::uintptr_t ahead = 0; ahead <= 2 * step; ahead += step) {
            enter(reinterpret_cast<std::uintptr_t>(::sbrk(0)) + ahead);
        }
        ::munmap(top, 4096);
        (void)stack::ensure_recent();  // this thread's table of traces, too, which optimised code may need late
    }

    void SetUp() override { the_handler() = &reports; }
    void TearDown() override {
        the_handler() = nullptr;
        std::printf("faults injected: %llu\n", static_cast<unsigned long long>(total_injected() - before));
    }

    template <class Subject>
    void expect_intact(const plan& p, const char* what) {
        reports.clear();  // which gives its memory back and gets other
        const ranges mapped_before = mapped();
        take_refused();
        findings out;
        run<Subject>(p, out);
        const ranges all_left = without(mapped(), mapped_before);
        const ranges left = without(all_left, take_refused());
        unmap(without(all_left, left));
        EXPECT_EQ(to_string(left), "") << what << ' ' << p.first << ": not given back";
        EXPECT_EQ(out.text, "") << what << ' ' << p.first;
        EXPECT_EQ(reports.count(), 0U) << what << ' ' << p.first << ": "
                                       << (reports.size() != 0 ? reports[0].text : std::string_view());
    }

    /// Every call by itself, everything from each call on, and each kind of call from its first and from half its
    /// number on.
    template <class Subject>
    void fail_everything() {
        findings warm;
        run<Subject>({}, warm);  // process-wide memory is never given back
        reports.clear();
        findings out;
        const std::uint64_t calls = run<Subject>({}, out);
        ASSERT_EQ(out.text, "");
        if constexpr (!requires { Subject::refuses; }) {
            ASSERT_EQ(out.refused, 0U);
        }
        ASSERT_EQ(reports.count(), 0U);
        ASSERT_GT(calls, 0U);  // one: of an arena that begins with the process's, over operator new
        const std::uint64_t step = std::max<std::uint64_t>(1, calls / most_runs);
        for (std::uint64_t k = 1; k <= calls && !HasFailure(); k += k < 100 ? 1 : step) {
            expect_intact<Subject>({.first = k, .last = k}, "call");
            expect_intact<Subject>({.first = k, .last = k, .error = EINVAL}, "call, EINVAL,");
        }
        for (std::uint64_t k = 1; k <= calls && !HasFailure(); k += k < 100 ? 1 : step) {
            // Records that cannot be made writable are the end; persistent_refusal_of_writable_records tests it.
            expect_intact<Subject>({.calls = memory_calls & ~unsurvivable<Subject>(), .first = k, .last = UINT64_MAX},
                                   "all from");
        }
        for (const call kind :
             {call::map, call::unmap, call::protect, call::advise, call::remap, call::key, call::open, call::look}) {
            if ((only(kind) & unsurvivable<Subject>()) != 0) {
                continue;
            }
            findings none;
            const std::uint64_t of_kind = run<Subject>({.calls = only(kind)}, none);
            for (const std::uint64_t from : {std::uint64_t{1}, of_kind / 2}) {
                if (from != 0 && of_kind != 0 && !HasFailure()) {
                    const plan p{.calls = only(kind), .first = from, .last = UINT64_MAX};
                    expect_intact<Subject>(p, name_of(kind));
                }
            }
        }
        std::printf("%llu calls\n", static_cast<unsigned long long>(calls));
    }

    template <class Subject>
    static constexpr unsigned unsurvivable() {
        if constexpr (requires { Subject::protects; }) {
            return only(call::protect);
        }
        return 0;
    }

    static constexpr std::uint64_t most_runs = 1000;
    collecting_handler reports;
    std::uint64_t before = total_injected();
};

TEST_F(system_calls, page) {
    fail_everything<page_subject>();
}
TEST_F(system_calls, heap) {
    fail_everything<heap_subject<default_policy>>();
}
TEST_F(system_calls, heap_unchecked) {
    fail_everything<heap_subject<unchecked_policy>>();
}
TEST_F(system_calls, heap_single_checked) {
    fail_everything<heap_subject<single_policy>>();
}
TEST_F(system_calls, heap_fast) {
    fail_everything<heap_subject<fast_policy>>();
}
TEST_F(system_calls, heap_release) {
    fail_everything<heap_subject<release_policy>>();
}
TEST_F(system_calls, heap_immediate) {
    fail_everything<heap_subject<immediate_policy>>();
}
TEST_F(system_calls, heap_quarantined) {
    fail_everything<heap_subject<quarantined_policy>>();
}
TEST_F(system_calls, heap_at_once) {
    fail_everything<heap_subject<at_once_policy>>();
}
TEST_F(system_calls, heap_keeping) {
    fail_everything<heap_subject<keeping_policy>>();
}
TEST_F(system_calls, heap_capped) {
    fail_everything<capped_heap_subject>();
}
TEST_F(system_calls, heap_thorough) {
    fail_everything<thorough_subject>();
}
TEST_F(system_calls, heap_over_new) {
    fail_everything<heap_over_new_subject<default_policy>>();
}
TEST_F(system_calls, heap_over_new_thorough) {
    fail_everything<thorough_over_new_subject>();
}
TEST_F(system_calls, tracking) {
    fail_everything<tracking_subject>();
}
TEST_F(system_calls, canary) {
    fail_everything<canary_subject>();
}
TEST_F(system_calls, end_of_page) {
    fail_everything<fence_subject<default_policy>>();
}
TEST_F(system_calls, end_of_page_thorough) {
    fail_everything<fence_subject<thorough_policy>>();
}
TEST_F(system_calls, end_of_page_keeping) {
    fail_everything<fence_subject<keeping_policy>>();
}
TEST_F(system_calls, end_of_page_over_pages) {
    fail_everything<fence_over_pages_subject>();
}
TEST_F(system_calls, temp) {
    fail_everything<temp_subject>();
}

// A refusal that goes on is the one that cannot be survived: nothing can be recorded any more.
TEST_F(system_calls, persistent_refusal_of_writable_records) {
    GTEST_FLAG_SET(death_test_style, "threadsafe");
    EXPECT_DEATH(
        {
            basic_general_purpose_resource<thorough_policy> resource;
            void* const p = resource.allocate(100);
            const faults armed({.calls = only(call::protect), .first = 1, .last = UINT64_MAX});
            resource.deallocate(p, 100);
        },
        "pmr_debug: general_purpose_resource: the system refuses to make write-protected records writable");
}

}  // namespace
