#pragma once

#include <pmr_debug/detail/language.hpp>
#if PMR_DEBUG_LANGUAGE

/// \file
/// Walks an object and all that is in it, and lists what keeps its memory elsewhere than on the resource expected.
///
/// \code
///   #include <pmr_debug/testing/propagation_check.hpp>
///   std::pmr::monotonic_buffer_resource arena;
///   std::pmr::vector<std::pair<int, std::string>> v(&arena);  // should be std::pmr::string
///   v.emplace_back(1, "one");
///   const auto found = pmr_debug::testing::check_propagation(v, &arena);
///   assert(!found.ok() && found.path() == "[0].second");
/// \endcode

#include <array>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <memory>
#include <memory_resource>
#include <optional>
#include <string_view>
#include <tuple>
#include <type_traits>
#include <utility>
#include <variant>

namespace pmr_debug::testing {

/// What is wrong with a member or element.
enum class misplacement : std::uint8_t {
    none,
    other_resource,    ///< a pmr container on another resource, though it may be an equal one
    not_a_pmr_object,  ///< a container with std::allocator: it is on the heap whatever its surroundings
};

/// What check_propagation found.
class propagation_findings {
public:
    /// True if all that was looked at is in its place.
    [[nodiscard]] bool ok() const noexcept { return misplaced_ == 0; }
    /// Objects with an allocator that were looked at.
    [[nodiscard]] std::size_t checked() const noexcept { return checked_; }
    /// Of those, the ones that are elsewhere.
    [[nodiscard]] std::size_t misplaced() const noexcept { return misplaced_; }
    /// Objects that own something, as they have a destructor, but show neither an allocator nor their members.
    [[nodiscard]] std::size_t opaque() const noexcept { return opaque_; }
    /// The first one that is elsewhere, such as `[3].second` or `.0`; empty for the object itself. Long ones are cut.
    [[nodiscard]] std::string_view path() const noexcept { return {path_.data(), path_size_}; }
    [[nodiscard]] misplacement what() const noexcept { return what_; }
    /// Where that one is; null unless what() is other_resource.
    [[nodiscard]] const std::pmr::memory_resource* found() const noexcept { return found_; }

    // For the walk: what is one step further in.
    void enter(std::string_view step) noexcept {
        for (const char c : step) {
            if (depth_ < here_.size()) {
                here_[depth_] = c;
            }
            ++depth_;
        }
    }
    void enter(std::string_view before, std::size_t number, std::string_view after) noexcept {
        std::array<char, 20> digits{};
        std::size_t from = digits.size();
        do {
            digits[--from] = static_cast<char>('0' + number % 10);
            number /= 10;
        } while (number != 0);
        enter(before);
        enter({digits.data() + from, digits.size() - from});
        enter(after);
    }
    [[nodiscard]] std::size_t depth() const noexcept { return depth_; }
    void leave(std::size_t depth) noexcept { depth_ = depth; }
    void note_checked() noexcept { ++checked_; }
    void note_opaque() noexcept { ++opaque_; }
    void note(misplacement what, const std::pmr::memory_resource* found) noexcept {
        if (misplaced_++ == 0) {
            what_ = what;
            found_ = found;
            path_ = here_;
            path_size_ = depth_ < here_.size() ? depth_ : here_.size();
        }
    }

private:
    std::size_t checked_ = 0;
    std::size_t misplaced_ = 0;
    std::size_t opaque_ = 0;
    misplacement what_ = misplacement::none;
    const std::pmr::memory_resource* found_ = nullptr;
    std::array<char, 160> path_{};
    std::size_t path_size_ = 0;
    std::array<char, 160> here_{};
    std::size_t depth_ = 0;
};

namespace detail {

template <class T>
inline constexpr bool is_polymorphic_allocator = false;
template <class T>
inline constexpr bool is_polymorphic_allocator<std::pmr::polymorphic_allocator<T>> = true;
template <class T>
inline constexpr bool is_std_allocator = false;
template <class T>
inline constexpr bool is_std_allocator<std::allocator<T>> = true;
template <class T>
inline constexpr bool is_optional = false;
template <class T>
inline constexpr bool is_optional<std::optional<T>> = true;
template <class T>
inline constexpr bool is_variant = false;
template <class... T>
inline constexpr bool is_variant<std::variant<T...>> = true;

template <class T>
inline constexpr bool is_owner = false;
template <class T, class D>
inline constexpr bool is_owner<std::unique_ptr<T, D>> = std::is_pointer_v<typename std::unique_ptr<T, D>::pointer>;
template <class T>
inline constexpr bool is_owner<std::shared_ptr<T>> = true;
/// What a smart pointer of type P points to can be looked at: it is no array of unknown size, and no type that is only
/// declared.
template <class P>
concept points_to_object = is_owner<P> && requires(const P& p) {
    *p;
    sizeof(*p);
};

template <class T>
concept has_allocator = requires(const T& x) {
    x.get_allocator();
};
template <class T>
concept is_range = requires(const T& x) {
    std::begin(x) != std::end(x);
    *std::begin(x);
};
template <class T>
concept is_tuple_like = requires {
    std::tuple_size<T>::value;
};
/// A class may show its members by a function `propagation_members(const T&)`, found by its argument, that returns a
/// tuple of references (std::tie).
template <class T>
concept shows_members = requires(const T& x) {
    propagation_members(x);
};

// ---- Members of plain aggregates -----------------------------------------------------------------------------------

inline constexpr std::size_t most_members = 10;

struct anything {
    template <class T>
    operator T() const noexcept;  // never defined: only asked whether it would do
};
template <class Derived>
struct any_base_of {
    template <class T>
    requires(std::is_base_of_v<T, Derived> && !std::is_same_v<T, Derived>) operator T() const noexcept;
};
/// Whether T takes so many empty braces, and then one more of each of \p More. A pair of braces is a member each, also
/// where that is an array. {} cannot stand in a pack expansion, so these are spelled out.
template <class T, std::size_t N, class... More>
consteval bool takes_empty_braces() {
    if constexpr (N == 0) {
        return requires {
            T{More{}...};
        };
    } else if constexpr (N == 1) {
        return requires {
            T{{}, More{}...};
        };
    } else if constexpr (N == 2) {
        return requires {
            T{{}, {}, More{}...};
        };
    } else if constexpr (N == 3) {
        return requires {
            T{{}, {}, {}, More{}...};
        };
    } else if constexpr (N == 4) {
        return requires {
            T{{}, {}, {}, {}, More{}...};
        };
    } else if constexpr (N == 5) {
        return requires {
            T{{}, {}, {}, {}, {}, More{}...};
        };
    } else if constexpr (N == 6) {
        return requires {
            T{{}, {}, {}, {}, {}, {}, More{}...};
        };
    } else if constexpr (N == 7) {
        return requires {
            T{{}, {}, {}, {}, {}, {}, {}, More{}...};
        };
    } else if constexpr (N == 8) {
        return requires {
            T{{}, {}, {}, {}, {}, {}, {}, {}, More{}...};
        };
    } else if constexpr (N == 9) {
        return requires {
            T{{}, {}, {}, {}, {}, {}, {}, {}, {}, More{}...};
        };
    } else if constexpr (N == 10) {
        return requires {
            T{{}, {}, {}, {}, {}, {}, {}, {}, {}, {}, More{}...};
        };
    } else {
        return requires {
            T{{}, {}, {}, {}, {}, {}, {}, {}, {}, {}, {}, More{}...};
        };
    }
}

/// Number of members of an aggregate, as far as it can be told without doubt; 0 otherwise. A member that takes no empty
/// braces would end the count early if it had a default; but then it takes something else, and there is doubt.
template <class T>
consteval std::size_t count_members() {
    if constexpr (!std::is_class_v<T> || !std::is_aggregate_v<T> || std::is_empty_v<T>) {
        return 0;
    } else if constexpr (requires { T{any_base_of<T>{}}; }) {
        return 0;
    } else {
        constexpr auto exactly = []<std::size_t N>(std::integral_constant<std::size_t, N>) {
            return takes_empty_braces<T, N>() && !takes_empty_braces<T, N + 1>() &&
                   !takes_empty_braces<T, N, anything>();
        };
        return [&]<std::size_t... I>(std::index_sequence<I...>) {
            return ((exactly(std::integral_constant<std::size_t, I + 1>{}) ? I + 1 : 0) + ...);
        }
        (std::make_index_sequence<most_members>{});
    }
}

/// Effects: calls visit(index, member) for every member.
template <class T, class Visit>
void for_each_member(const T& x, Visit&& visit) {
    constexpr std::size_t n = count_members<T>();
    const auto each = [&](const auto&... members) {
        std::size_t i = 0;
        (visit(i++, members), ...);
    };
    if constexpr (n == 1) {
        const auto& [a] = x;
        each(a);
    } else if constexpr (n == 2) {
        const auto& [a, b] = x;
        each(a, b);
    } else if constexpr (n == 3) {
        const auto& [a, b, c] = x;
        each(a, b, c);
    } else if constexpr (n == 4) {
        const auto& [a, b, c, d] = x;
        each(a, b, c, d);
    } else if constexpr (n == 5) {
        const auto& [a, b, c, d, e] = x;
        each(a, b, c, d, e);
    } else if constexpr (n == 6) {
        const auto& [a, b, c, d, e, f] = x;
        each(a, b, c, d, e, f);
    } else if constexpr (n == 7) {
        const auto& [a, b, c, d, e, f, g] = x;
        each(a, b, c, d, e, f, g);
    } else if constexpr (n == 8) {
        const auto& [a, b, c, d, e, f, g, h] = x;
        each(a, b, c, d, e, f, g, h);
    } else if constexpr (n == 9) {
        const auto& [a, b, c, d, e, f, g, h, i] = x;
        each(a, b, c, d, e, f, g, h, i);
    } else if constexpr (n == 10) {
        const auto& [a, b, c, d, e, f, g, h, i, j] = x;
        each(a, b, c, d, e, f, g, h, i, j);
    }
}

// ---- The walk ------------------------------------------------------------------------------------------------------

class propagation_walk {
public:
    explicit propagation_walk(const std::pmr::memory_resource* expected) noexcept : expected_(expected) {}

    template <class T>
    void visit(const T& x) {
        if constexpr (std::is_trivially_destructible_v<T>) {
            // Owns nothing.
        } else if constexpr (has_allocator<T>) {
            check_allocator(x.get_allocator());
            if constexpr (is_range<T>) {
                visit_elements(x);
            }
        } else if constexpr (is_optional<T>) {
            if (x.has_value()) {
                step("*", *x);
            }
        } else if constexpr (is_variant<T>) {
            if (!x.valueless_by_exception()) {
                std::visit([&](const auto& held) { step("|", x.index(), "|", held); }, x);
            }
        } else if constexpr (points_to_object<T>) {
            if (x != nullptr) {
                follow(std::addressof(*x));
            }
        } else if constexpr (shows_members<T>) {
            visit_tuple(propagation_members(x));
        } else if constexpr (is_range<T>) {
            visit_elements(x);
        } else if constexpr (is_tuple_like<T>) {
            visit_tuple(x);
        } else if constexpr (count_members<T>() != 0) {
            for_each_member(x, [&](std::size_t i, const auto& member) { step(".", i, "", member); });
        } else {
            findings_.note_opaque();
        }
    }

    [[nodiscard]] const propagation_findings& findings() const noexcept { return findings_; }

private:
    template <class Allocator>
    void check_allocator(const Allocator& a) noexcept {
        if constexpr (is_polymorphic_allocator<Allocator>) {
            findings_.note_checked();
            if (a.resource() != expected_) {
                findings_.note(misplacement::other_resource, a.resource());
            }
        } else if constexpr (is_std_allocator<Allocator>) {
            findings_.note_checked();
            findings_.note(misplacement::not_a_pmr_object, nullptr);
        }
    }

    // Pointers may lead in a circle, or far.
    template <class T>
    void follow(const T* object) {
        constexpr int far = 256;
        int length = 0;
        for (const pointee* p = way_; p != nullptr; p = p->before, ++length) {
            if (p->object == object) {
                return;
            }
        }
        if (length == far) {
            findings_.note_opaque();
            return;
        }
        const pointee here{object, way_};
        way_ = &here;
        step("*", *object);
        way_ = here.before;
    }

    template <class T>
    void visit_elements(const T& range) {
        if constexpr (!std::is_trivially_destructible_v<std::remove_cvref_t<decltype(*std::begin(range))>>) {
            std::size_t i = 0;
            for (auto at = std::begin(range); at != std::end(range); ++at) {
                step("[", i++, "]", *at);
            }
        }
    }

    template <class T>
    void visit_tuple(const T& x) {
        if constexpr (requires { x.first, x.second; }) {
            step(".first", x.first);
            step(".second", x.second);
        } else {
            [&]<std::size_t... I>(std::index_sequence<I...>) {
                (step(".", I, "", std::get<I>(x)), ...);
            }
            (std::make_index_sequence<std::tuple_size_v<T>>{});
        }
    }

    template <class T>
    void step(std::string_view name, const T& x) {
        const std::size_t depth = findings_.depth();
        findings_.enter(name);
        visit(x);
        findings_.leave(depth);
    }
    template <class T>
    void step(std::string_view before, std::size_t number, std::string_view after, const T& x) {
        const std::size_t depth = findings_.depth();
        findings_.enter(before, number, after);
        visit(x);
        findings_.leave(depth);
    }

    struct pointee {
        const void* object;
        const pointee* before;
    };

    const std::pmr::memory_resource* expected_;
    propagation_findings findings_;
    const pointee* way_ = nullptr;  // objects that smart pointers led to, the last one first
};

}  // namespace detail

/// Effects: looks at \p object, and at what is in it as far as the types tell: elements of containers, ranges and
///   arrays, of pairs, tuples, optionals and variants, what std::unique_ptr and std::shared_ptr own (as the type they
///   are declared with; 256 of them in a row, further ones count as opaque), and members of aggregates of up to 10
///   members without bases. Other classes show their members by a function `propagation_members`, or count as opaque.
///   Where a smart pointer's object itself is, it does not tell. Allocates nothing, calls no resource: resources are
///   compared by address, so that even a dead one may be found.
/// Thread safety: as reading \p object.
template <class T>
[[nodiscard]] propagation_findings check_propagation(const T& object, const std::pmr::memory_resource* expected) {
    detail::propagation_walk walk(expected);
    walk.visit(object);
    return walk.findings();
}

/// As above, with the object's own resource expected of all that is in it.
template <class T>
requires requires(const T& x) {
    x.get_allocator().resource();
}
[[nodiscard]] propagation_findings check_propagation(const T& object) {
    return check_propagation(object, object.get_allocator().resource());
}

}  // namespace pmr_debug::testing

#endif  // PMR_DEBUG_LANGUAGE
