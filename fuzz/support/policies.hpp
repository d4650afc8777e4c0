#pragma once

// The policies that targets run under. Most keep no traces: capturing them is not what is fuzzed.

#include <pmr_debug/policy.hpp>

#include <cstddef>
#include <string>

namespace fuzz {

using pmr_debug::dead_unit;
using pmr_debug::policy;
using pmr_debug::reuse;
using pmr_debug::threading;

inline constexpr policy untraced{.alloc_frames = 0, .free_frames = 0};
inline constexpr policy single{.threads = threading::single_checked, .alloc_frames = 0, .free_frames = 0};
inline constexpr policy unchecked{.threads = threading::unchecked, .alloc_frames = 0, .free_frames = 0};
inline constexpr policy quarantined{.alloc_frames = 0, .free_frames = 0, .freed = reuse::quarantined};
inline constexpr policy immediate{.alloc_frames = 0, .free_frames = 0, .freed = reuse::immediate};
inline constexpr policy immediate_unchecked{
    .threads = threading::unchecked, .alloc_frames = 0, .free_frames = 0, .freed = reuse::immediate};
inline constexpr policy kept{.alloc_frames = 0, .free_frames = 0, .dead = dead_unit::keep};
inline constexpr policy at_once{
    .alloc_frames = 0, .free_frames = 0, .guard_bytes = 40, .dead = dead_unit::trap_at_once};
inline constexpr policy traced_single{.threads = threading::single_checked, .alloc_frames = 4, .free_frames = 3};
inline constexpr policy no_fill{.alloc_frames = 0, .free_frames = 0, .guard_bytes = 1, .fill = false};
inline constexpr policy release_unchecked{.threads = threading::unchecked,
                                          .alloc_frames = 0,
                                          .free_frames = 0,
                                          .checks = false,
                                          .guard_bytes = 0,
                                          .fill = false,
                                          .freed = reuse::never,
                                          .dead = dead_unit::keep};

/// Effects: calls f.template operator()<policy>() with the policy that \p choice stands for. The cheap ones more often.
template <class F>
void with_policy(std::size_t choice, F&& f) {
    switch (choice % 16) {
        case 1: return f.template operator()<single>();
        case 2: return f.template operator()<unchecked>();
        case 3: return f.template operator()<quarantined>();
        case 4: return f.template operator()<immediate>();
        case 5: return f.template operator()<immediate_unchecked>();
        case 6: return f.template operator()<kept>();
        case 7: return f.template operator()<at_once>();
        case 8: return f.template operator()<traced_single>();
        case 9: return f.template operator()<no_fill>();
        case 10: return f.template operator()<release_unchecked>();
        case 11: return f.template operator()<pmr_debug::default_policy>();
        case 12: return f.template operator()<pmr_debug::thorough_policy>();
        case 13: return f.template operator()<pmr_debug::fast_policy>();
        case 14: return f.template operator()<pmr_debug::release_policy>();
        default: return f.template operator()<untraced>();
    }
}

/// For the heading of a program.
inline std::string words(const policy& p) {
    static constexpr const char* threads[] = {"unchecked", "single_checked", "synchronized"};
    static constexpr const char* freed[] = {"immediate", "quarantined", "never"};
    static constexpr const char* dead[] = {"keep", "trap", "trap_at_once"};
    return std::string("policy {threads ") + threads[static_cast<int>(p.threads)] + ", frames " +
           std::to_string(p.alloc_frames) + "/" + std::to_string(p.free_frames) + ", checks " +
           std::to_string(static_cast<int>(p.checks)) + ", guard_bytes " + std::to_string(p.guard_bytes) + ", fill " +
           std::to_string(static_cast<int>(p.fill)) + ", reuse " + freed[static_cast<int>(p.freed)] + ", dead " +
           dead[static_cast<int>(p.dead)] + ", protect " + std::to_string(static_cast<int>(p.protect_metadata)) + "}";
}

}  // namespace fuzz
