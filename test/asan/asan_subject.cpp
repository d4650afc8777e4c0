// A small program for AddressSanitizer to look at: asan_subject <bug> <resource>.

#include <pmr_debug/canary_resource.hpp>
#include <pmr_debug/end_of_page_resource.hpp>
#include <pmr_debug/general_purpose_resource.hpp>
#include <pmr_debug/page_resource.hpp>
#include <pmr_debug/temp_resource.hpp>

#include <sys/resource.h>

#include <cstddef>
#include <cstdio>
#include <cstring>
#include <memory_resource>
#include <string>
#include <string_view>
#include <thread>
#include <type_traits>
#include <vector>

namespace {

constexpr std::size_t bytes = 43;  // not a multiple of what the sanitizer tells apart

__attribute__((noinline)) void overruns_the_block(volatile char* p) {
    asm volatile("" : "+r"(p));
    p[bytes] = 'x';
}

__attribute__((noinline)) void underruns_the_block(volatile char* p) {
    asm volatile("" : "+r"(p));
    p[-1] = 'x';
}

__attribute__((noinline)) int reads_the_freed_block(const volatile char* p) {
    asm volatile("" : "+r"(p));
    return p[3];
}

void uses(std::pmr::memory_resource& resource) {
    for (int round = 0; round < 3; ++round) {
        std::pmr::vector<std::pmr::string> lines(&resource);
        for (int i = 0; i < 2'000; ++i) {
            lines.emplace_back("a line that is too long to be kept within the string itself");
        }
        for (std::size_t size = 0; size < 300'000; size = 2 * size + 1) {
            void* const p = resource.allocate(size, 16);
            std::memset(p, 1, size);
            resource.deallocate(p, size, 16);
        }
    }
}

/// Everything a resource does, without an error: reuse, large blocks, units that die, blocks freed by other threads.
void correct_program(std::pmr::memory_resource& resource) {
    uses(resource);
    std::vector<void*> blocks;
    for (std::size_t i = 0; i < 1'000; ++i) {
        blocks.push_back(resource.allocate(i, 8));
        std::memset(blocks.back(), 2, i);
    }
    std::thread other([&] {
        uses(resource);
        for (std::size_t i = 0; i < blocks.size(); ++i) {
            resource.deallocate(blocks[i], i, 8);
        }
    });
    uses(resource);
    other.join();
}

int run(std::string_view bug, std::pmr::memory_resource& resource) {
    correct_program(resource);
    auto* const p = static_cast<char*>(resource.allocate(bytes, 8));
    std::memset(p, 'a', bytes);
    if (bug == "overrun") {
        overruns_the_block(p);
    }
    if (bug == "underrun") {
        underruns_the_block(p);
    }
    resource.deallocate(p, bytes, 8);
    return bug == "use_after_free" ? reads_the_freed_block(p) : 0;
}

/// Bump arenas have more to take memory back with: marks, and release().
int run_arena(std::string_view bug, pmr_debug::temp_resource_base& arena) {
    int sum = 0;
    for (int round = 0; round < 3; ++round) {
        for (std::size_t i = 0; i < 300; ++i) {  // odd sizes side by side, and never freed
            std::memset(arena.allocate(i, std::size_t{1} << (i % 5)), 3, i);
        }
        const pmr_debug::temp_mark mark(arena);
        uses(arena);
        std::memset(arena.allocate(bytes, 8), 4, bytes);
    }
    arena.release();
    sum += run(bug, arena);
    const char* gone = nullptr;
    {
        const pmr_debug::temp_mark mark(arena);
        gone = static_cast<const char*>(arena.allocate(bytes, 8));
    }
    sum += bug == "use_after_rewind" ? reads_the_freed_block(gone) : 0;
    arena.release();  // so that a first, small chunk waits in quarantine next
    gone = static_cast<const char*>(arena.allocate(bytes, 8));
    arena.release();
    return sum + (bug == "use_after_release" ? reads_the_freed_block(gone) : 0);
}

/// Strips whose addresses come round again, in each way to treat freed memory.
template <pmr_debug::policy P, class Use>
void use_fence(std::pmr::memory_resource* below, const Use& use) {
    const pmr_debug::end_of_page_options few{.address_space_bytes = std::size_t{1} << 27, .quarantine_bytes = 1 << 20};
    if (below != nullptr) {
        pmr_debug::basic_end_of_page_resource<P> resource(below, few);
        use(resource);
    } else {
        pmr_debug::basic_end_of_page_resource<P> resource(few);
        use(resource);
    }
}

/// More blocks than mprotect has guards for: the last ones have none.
template <class Use>
void use_crowded_fence(const Use& use) {
    pmr_debug::end_of_page_resource resource;
    std::vector<void*> crowd(17'000);
    for (void*& p : crowd) {
        p = resource.allocate(bytes, 8);
    }
    use(resource);
    for (void* const p : crowd) {
        resource.deallocate(p, bytes, 8);
    }
}

/// Returns: whether dead strips leave the sanitizer's memory about them behind, 128 MiB by the end.
bool grows_with_addresses() {
    const auto peak = [] {
        rusage use{};
        ::getrusage(RUSAGE_SELF, &use);
        return use.ru_maxrss;  // KiB
    };
    pmr_debug::end_of_page_resource resource({.quarantine_bytes = 1 << 20});
    const auto before = peak();
    for (int i = 0; i < 128 * 1024; ++i) {
        resource.deallocate(resource.allocate(bytes, 8), bytes, 8);
    }
    return peak() - before > 32 * 1024;
}

constexpr pmr_debug::policy fence_again{.freed = pmr_debug::reuse::quarantined};
constexpr pmr_debug::policy fence_kept{.dead = pmr_debug::dead_unit::keep};
constexpr pmr_debug::policy fence_trapped{.dead = pmr_debug::dead_unit::trap_at_once};

constexpr pmr_debug::policy at_once{.freed = pmr_debug::reuse::immediate};

}  // namespace

int main(int argc, char** argv) {
    const std::string_view bug = argc > 1 ? argv[1] : "none";
    const std::string_view name = argc > 2 ? argv[2] : "heap";
    static pmr_debug::text_handler carries_on({.abort_on_error = false});
    pmr_debug::set_default_report_handler(&carries_on);
    int sum = 0;
    bool ok = true;
    const auto use = [&](auto& resource) {
        if constexpr (std::is_base_of_v<pmr_debug::temp_resource_base, std::remove_reference_t<decltype(resource)>>) {
            sum += run_arena(bug, resource);
        } else {
            sum += run(bug, resource);
        }
        if constexpr (requires { resource.check(); }) {
            resource.check();
        }
        ok = resource.ok();
    };
    // What the upstream gets back must be as it was: the next resource is made of the same memory.
    for (int round = 0; round < 2; ++round) {
        pmr_debug::page_resource pages;
        if (name == "heap") {
            pmr_debug::general_purpose_resource resource;
            use(resource);
        } else if (name == "pages") {
            pmr_debug::general_purpose_resource resource(&pages);
            use(resource);
        } else if (name == "fast") {
            pmr_debug::basic_general_purpose_resource<pmr_debug::fast_policy> resource(&pages);
            use(resource);
        } else if (name == "release") {
            pmr_debug::basic_general_purpose_resource<pmr_debug::release_policy> resource(&pages);
            use(resource);
        } else if (name == "immediate") {
            pmr_debug::basic_general_purpose_resource<at_once> resource(&pages);
            use(resource);
        } else if (name == "canary") {
            pmr_debug::canary_resource resource;
            use(resource);
        } else if (name == "canary_temp") {
            // Blocks side by side, within memory that is closed by its owner, too.
            static char buffer[20'000'003];
            {
                pmr_debug::basic_temp_resource<pmr_debug::default_policy> below(buffer + 1, sizeof buffer - 1);
                pmr_debug::canary_resource resource(&below);
                use(resource);
                std::memset(resource.allocate(bytes, 8), 1, bytes);
                resource.before_upstream_release();
                below.release();
                use(resource);
            }
            std::memset(buffer, 1, sizeof buffer);
        } else if (name == "fence") {
            use_fence<pmr_debug::default_policy>(nullptr, use);
        } else if (name == "fence_again") {
            use_fence<fence_again>(nullptr, use);
        } else if (name == "fence_immediate") {
            use_fence<at_once>(nullptr, use);
        } else if (name == "fence_kept") {
            use_fence<fence_kept>(nullptr, use);
        } else if (name == "fence_trapped") {
            use_fence<fence_trapped>(nullptr, use);
        } else if (name == "fence_release") {
            use_fence<pmr_debug::release_policy>(nullptr, use);
        } else if (name == "fence_pages") {
            use_fence<pmr_debug::default_policy>(&pages, use);
        } else if (name == "fence_heap") {  // whose memory has no guards
            use_fence<pmr_debug::default_policy>(std::pmr::new_delete_resource(), use);
        } else if (name == "fence_buffer") {  // whose memory nobody else tells the sanitizer of
            static char buffer[20'000'000];
            {
                std::pmr::monotonic_buffer_resource below(buffer, sizeof buffer, std::pmr::null_memory_resource());
                use_fence<pmr_debug::default_policy>(&below, [](std::pmr::memory_resource& resource) {
                    for (std::size_t i = 0; i < 1'000; ++i) {
                        resource.deallocate(resource.allocate(i, 8), i, 8);
                    }
                });
            }
            std::memset(buffer, 1, sizeof buffer);
        } else if (name == "fence_crowded") {
            use_crowded_fence(use);
        } else if (name == "fence_addresses") {
            ok = !grows_with_addresses() && ok;
        } else if (name == "fence_after") {
            pmr_debug::end_of_page_resource resource({.where = pmr_debug::placement::after_guard});
            use(resource);
        } else if (name == "page") {
            use(pages);
            // Resized in place: what is no part of the block any more is closed, what became part of it is open.
            constexpr std::size_t large = 5 * 4096 + 1'000;
            auto* const p = static_cast<char*>(pages.allocate(large, 8));
            ok = pages.resize(p, large, bytes) && ok;
            std::memset(p, 1, bytes);
            if (bug == "overrun_resized") {
                overruns_the_block(p);
            }
            if (pages.resize(p, bytes, large)) {
                std::memset(p, 1, large);
                pages.deallocate(p, large, 8);
            } else {  // somebody else's mapping is in the way
                pages.deallocate(p, bytes, 8);
            }
        } else if (name == "temp") {
            pmr_debug::basic_temp_resource<pmr_debug::default_policy> resource;
            use(resource);
        } else if (name == "temp_buffer") {
            static char buffer[2'000'003];
            {
                pmr_debug::basic_temp_resource<pmr_debug::default_policy> resource(
                    buffer + 1, sizeof buffer - 2, {.overflow = pmr_debug::temp_overflow::silent});
                use(resource);
            }
            std::memset(buffer, 1, sizeof buffer);
        } else {
            pmr_debug::general_purpose_resource below;
            pmr_debug::general_purpose_resource resource(&below);
            use(resource);
        }
    }
    std::printf("%s\n", sum != 12345 && (ok || bug != "none") ? "done" : "no");
    return bug != "none" || ok ? 0 : 1;
}
