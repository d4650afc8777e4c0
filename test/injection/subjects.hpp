#pragma once

// Resources on which the program runs, each with what lies below it.

#include "program.hpp"
#include "system_calls.hpp"

#include <pmr_debug/pmr_debug.hpp>

#include <cstddef>
#include <memory_resource>
#include <new>
#include <optional>

namespace injection {

using namespace pmr_debug;

inline constexpr policy unchecked_policy{.threads = threading::unchecked};
inline constexpr policy single_policy{.threads = threading::single_checked};
inline constexpr policy immediate_policy{.freed = reuse::immediate};
inline constexpr policy quarantined_policy{.freed = reuse::quarantined};
inline constexpr policy at_once_policy{.dead = dead_unit::trap_at_once};
inline constexpr policy keeping_policy{.dead = dead_unit::keep};

// Small, so that the program reaches what happens beyond them.
inline constexpr std::size_t quarantine = std::size_t{1} << 17;
inline constexpr std::size_t records = std::size_t{1} << 14;

/// Of all resources that are made from now on.
inline report_handler*& the_handler() {
    static report_handler* h = nullptr;
    return h;
}

struct page_subject {
    static constexpr bool few = true;
    page_resource resource{{.handler = the_handler()}};
    std::pmr::memory_resource& top() { return resource; }
    // The question which pages are resident is a system call of its own: not here.
    void more(program& p) {
        p.allocate(3 * 4096, 8);
        void* const block = resource.allocate(8 * 4096, 8);
        const bool guarded = resource.guard(block, 4096);
        if (guarded) {
            resource.unguard(block, 4096);
        }
        const bool grown = resource.resize(block, 8 * 4096, 4 * 4096);
        resource.deallocate(block, grown ? 4 * 4096 : 8 * 4096, 8);
    }
    bool ok() { return resource.ok(); }
};

template <policy P>
struct heap_subject {
    static constexpr bool few = P.protect_metadata;
    page_resource pages{{.handler = the_handler()}};
    basic_general_purpose_resource<P> resource{
        &pages, {.handler = the_handler(), .quarantine_bytes = quarantine, .retired_record_bytes = records}};
    std::pmr::memory_resource& top() { return resource; }
    void more(program&) {}
    bool ok() { return pages.ok() && resource.ok() && resource.check() == 0; }
};

template <policy P>
struct heap_over_new_subject {
    static constexpr bool few = P.protect_metadata;
    basic_general_purpose_resource<P> resource{
        {.handler = the_handler(), .quarantine_bytes = quarantine, .retired_record_bytes = records}};
    std::pmr::memory_resource& top() { return resource; }
    void more(program&) {}
    bool ok() { return resource.ok() && resource.check() == 0; }
};

/// So little address space that the memory of retired units must be used again.
struct capped_heap_subject {
    static constexpr bool few = false;
    static constexpr bool refuses = true;
    page_resource pages{{.handler = the_handler()}};
    general_purpose_resource resource{
        &pages,
        {.handler = the_handler(), .address_space_bytes = std::size_t{3} << 20, .quarantine_bytes = quarantine}};
    std::pmr::memory_resource& top() { return resource; }
    void more(program&) {}
    bool ok() { return pages.ok() && resource.ok() && resource.check() == 0; }
};

struct thorough_subject : heap_subject<thorough_policy> {
    static constexpr bool protects = true;
};
struct thorough_over_new_subject : heap_over_new_subject<thorough_policy> {
    static constexpr bool protects = true;
};

struct tracking_subject {
    static constexpr bool few = true;
    page_resource pages{{.handler = the_handler()}};
    tracking_resource resource{&pages, {.handler = the_handler()}};
    std::pmr::memory_resource& top() { return resource; }
    void more(program&) {}
    bool ok() { return pages.ok() && resource.ok(); }
};

struct canary_subject {
    static constexpr bool few = true;
    page_resource pages{{.handler = the_handler()}};
    canary_resource resource{&pages, {.handler = the_handler(), .quarantine_bytes = quarantine}};
    std::pmr::memory_resource& top() { return resource; }
    void more(program&) {}
    bool ok() { return pages.ok() && resource.ok() && resource.check() == 0; }
};

template <policy P>
struct fence_subject {
    static constexpr bool few = true;
    basic_end_of_page_resource<P> resource{{.handler = the_handler(),
                                            .address_space_bytes = std::size_t{64} << 20,
                                            .quarantine_bytes = quarantine,
                                            .retired_record_bytes = records}};
    std::pmr::memory_resource& top() { return resource; }
    void more(program&) {}
    bool ok() { return resource.ok() && resource.check() == 0; }
};

struct fence_over_pages_subject {
    static constexpr bool few = true;
    page_resource pages{{.handler = the_handler()}};
    end_of_page_resource resource{&pages,
                                  {.handler = the_handler(),
                                   .address_space_bytes = std::size_t{64} << 20,
                                   .quarantine_bytes = quarantine,
                                   .retired_record_bytes = records}};
    std::pmr::memory_resource& top() { return resource; }
    void more(program&) {}
    bool ok() { return pages.ok() && resource.ok() && resource.check() == 0; }
};

struct temp_subject {
    static constexpr bool few = true;
    page_resource pages{{.handler = the_handler()}};
    temp_resource<> resource{&pages, {.handler = the_handler()}};
    std::pmr::memory_resource& top() { return resource; }
    void more(program& p) {
        {
            const temp_mark m(resource);
            for (int i = 0; i < 30; ++i) {
                p.allocate(9000, 8);
            }
            p.verify_all("a mark");
            p.forget();
        }
        p.allocate(100, 8);
        p.verify_all("a rewind");
        p.forget();
        resource.release();
    }
    bool ok() { return pages.ok() && resource.ok() && resource.check() == 0; }
};

/// Effects: runs the program on a fresh subject, under \p p. Returns: how many calls it made.
template <class Subject>
std::uint64_t run(const plan& p, findings& out) {
    const faults armed(p);
    std::optional<Subject> subject;
    try {
        subject.emplace();
    } catch (const std::bad_alloc&) {
        out.refused += 1;
        return faults::seen();
    }
    {
        program work(subject->top(), out, [&subject] { return subject->resource.stats(); });
        work.run(Subject::few);
        try {
            subject->more(work);
        } catch (const std::bad_alloc&) {
            out.refused += 1;
        }
        work.verify_all("it all");
    }
    if (!subject->ok()) {
        out.add("something was reported");
    }
    subject.reset();
    return faults::seen();
}

}  // namespace injection
