// A small program for Memcheck to look at: memcheck_subject <bug> <upstream>.

#include <pmr_debug/canary_resource.hpp>
#include <pmr_debug/end_of_page_resource.hpp>
#include <pmr_debug/general_purpose_resource.hpp>
#include <pmr_debug/page_resource.hpp>
#include <pmr_debug/temp_resource.hpp>

#include <cstddef>
#include <cstdio>
#include <cstring>
#include <memory_resource>
#include <new>
#include <string>
#include <string_view>
#include <vector>

namespace {

constexpr std::size_t bytes = 40;

__attribute__((noinline)) int read_at(const volatile char* p) {
    asm volatile("" : "+r"(p));
    return *p;
}

/// Everything a resource does, without an error: reuse, large blocks, alignments, a unit that dies.
void correct_program(std::pmr::memory_resource& resource) {
    for (int round = 0; round < 3; ++round) {
        std::pmr::vector<std::pmr::string> lines(&resource);
        for (int i = 0; i < 300; ++i) {
            lines.emplace_back("a line that is too long to be kept within the string itself");
        }
        auto* const large = static_cast<char*>(resource.allocate(100'000, 64));
        large[99'999] = 'x';
        resource.deallocate(large, 100'000, 64);
    }
}

int run(std::string_view bug, std::pmr::memory_resource& resource) {
    correct_program(resource);
    auto* const p = static_cast<char*>(resource.allocate(bytes, 8));
    int sum = 0;
    for (std::size_t i = 0; i < bytes; ++i) {
        p[i] = 'a';
    }
    if (bug == "overrun") {
        sum += read_at(p + bytes);
    }
    if (bug == "uninitialised") {
        auto* const fresh = static_cast<char*>(resource.allocate(bytes, 8));
        if (read_at(fresh) == 'a') {  // a call behind it, so that an optimiser leaves the jump
            std::puts("found an a");
        }
        resource.deallocate(fresh, bytes, 8);
    }
    if (bug == "leak") {
        // Not the first of its unit, whose address is in the resource's own records.
        char* lost = static_cast<char*>(resource.allocate(bytes, 8));
        sum += read_at(lost + 1) & 0;
        lost = nullptr;
        asm volatile("" : "+r"(lost));
    }
    resource.deallocate(p, bytes, 8);
    if (bug == "use_after_free") {
        sum += read_at(p + 3);
    }
    return sum;
}

}  // namespace

int main(int argc, char** argv) {
    const std::string_view bug = argc > 1 ? argv[1] : "none";
    const std::string_view upstream = argc > 2 ? argv[2] : "heap";
    // Never destroyed: what is still allocated at the end of the program is Memcheck's to find.
    static pmr_debug::page_resource& pages = *new pmr_debug::page_resource;
    static auto& resource = upstream == "heap" ? *new pmr_debug::general_purpose_resource
                                               : *new pmr_debug::general_purpose_resource(&pages);
    int sum = 0;
    if (upstream == "chain") {
        pmr_debug::general_purpose_resource above(&resource);
        sum = run(bug, above);
    } else if (upstream == "canary") {
        // Freed blocks that wait at the end of the program would be leaks of malloc's, so the one that leaks has none.
        static auto& lives = *new pmr_debug::canary_resource({.quarantine_bytes = 0});
        pmr_debug::canary_resource above;
        sum = bug == "leak" ? run(bug, lives) : run(bug, above);
        above.check();
    } else if (upstream == "fence") {
        // The guard page comes first, so that an overrun does not end the program.
        static auto& lives = *new pmr_debug::end_of_page_resource({.where = pmr_debug::placement::after_guard});
        sum = run(bug, lives);
        lives.check();
    } else if (upstream == "fence_again") {
        pmr_debug::basic_end_of_page_resource<pmr_debug::policy{.freed = pmr_debug::reuse::quarantined}> above(
            {.where = pmr_debug::placement::after_guard, .quarantine_bytes = 1 << 20});
        sum = run(bug, above);
        above.check();
    } else if (upstream == "fence_heap") {  // whose memory has no guards
        pmr_debug::end_of_page_resource above(std::pmr::new_delete_resource(), {.quarantine_bytes = 1 << 20});
        sum = run(bug, above);
        above.check();
    } else if (upstream == "page") {
        sum = run(bug, pages);
    } else if (upstream == "temp") {
        pmr_debug::temp_resource<> above;
        sum = run(bug, above);
        above.release();
        above.check();
    } else if (upstream == "temp_buffer") {
        static char buffer[1'000'000];
        {
            pmr_debug::temp_resource<> above(buffer, sizeof buffer, {.overflow = pmr_debug::temp_overflow::silent});
            sum = run(bug, above);
            const pmr_debug::temp_mark mark(above);
            correct_program(above);
            above.check();
        }
        std::memset(buffer, 1, sizeof buffer);
    } else {
        sum = run(bug, resource);
    }
    {
        pmr_debug::general_purpose_resource dies;
        correct_program(dies);
    }
    std::printf("%s\n", sum == 12345 ? "no" : "done");
    return 0;
}
