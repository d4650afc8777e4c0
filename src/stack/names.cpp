#include "stack/names.hpp"

#include "stack/frame_class.hpp"

#include "os/stack_bounds.hpp"

#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <cstring>

#if defined(PMR_DEBUG_HAVE_DEMANGLE_CALLBACK) && PMR_DEBUG_HAVE_DEMANGLE_CALLBACK
// In GCC's libsupc++.a, and in no header: abi::__cxa_demangle without the heap.
extern "C" int __gcclibcxx_demangle_callback(const char* name, void (*append)(const char*, std::size_t, void*),
                                             void* context);
#endif

namespace pmr_debug::stack {

namespace {

#if defined(PMR_DEBUG_HAVE_DEMANGLE_CALLBACK) && PMR_DEBUG_HAVE_DEMANGLE_CALLBACK
struct output {
    std::span<char> buffer;
    std::size_t length = 0;
};

void append(const char* text, std::size_t length, void* context) {
    output& o = *static_cast<output*>(context);
    const std::size_t room = o.buffer.size() - 1 - o.length;
    const std::size_t part = length < room ? length : room;
    std::memcpy(o.buffer.data() + o.length, text, part);
    o.length += part;
}

// The demangler takes about 70 bytes of stack for each character.
std::size_t longest_name() noexcept {
    const auto frame = reinterpret_cast<std::uintptr_t>(__builtin_frame_address(0));
    const os::stack_bounds own = os::this_stack(frame);
    const bool on_own_stack = own.low <= frame && frame < own.high;
    return on_own_stack ? 2048 : 256;
}
#endif

/// Where the qualified name begins: templates have their return type before it.
std::size_t name_start(std::string_view name) noexcept {
    constexpr std::string_view anonymous = "(anonymous namespace)";
    std::size_t start = 0;
    int depth = 0;
    for (std::size_t i = 0; i < name.size(); ++i) {
        const std::string_view rest = name.substr(i);
        const char c = name[i];
        if (rest.starts_with(anonymous)) {
            i += anonymous.size() - 1;
        } else if (rest.starts_with("decltype (") || rest.starts_with("decltype(")) {
            // A return type in parentheses, which is no parameter list.
            int open = 0;
            for (; i < name.size() && !(name[i] == ')' && open == 1); ++i) {
                open += name[i] == '(' ? 1 : (name[i] == ')' ? -1 : 0);
            }
        } else if (depth == 0 && (c == '(' || rest.starts_with("operator"))) {
            // The parameters, or a name that may hold spaces and brackets.
            if (c == '(' || i == 0 || name[i - 1] == ':' || name[i - 1] == ' ') {
                break;
            }
        } else if (c == '<' || c == '(' || c == '{' || c == '[') {
            ++depth;
        } else if ((c == '>' && name[i - (i > 0 ? 1 : 0)] != '-') || c == ')' || c == '}' || c == ']') {
            --depth;
        } else if (c == ' ' && depth == 0) {
            start = i + 1;
        }
    }
    return start;
}

/// Returns: what is behind "std::" in \p name, and behind the inline namespace that versions have (libstdc++'s __cxx11,
/// where std::string lives, libc++'s __1); empty if it is no name of std.
std::string_view within_std(std::string_view name) noexcept {
    constexpr std::string_view std_prefix = "std::";
    if (!name.starts_with(std_prefix)) {
        return {};
    }
    name.remove_prefix(std_prefix.size());
    for (const std::string_view version : {"__cxx11::", "__1::", "__2::", "__ndk1::"}) {
        if (name.starts_with(version)) {
            return name.substr(version.size());
        }
    }
    return name;
}

/// True if \p name has \p part in its path, before the parameters and not in template arguments or tags.
bool has_part(std::string_view name, std::string_view part) noexcept {
    int depth = 0;
    for (std::size_t i = 0; i < name.size(); ++i) {
        const char c = name[i];
        if (depth == 0 && name.substr(i).starts_with(part)) {
            return true;
        }
        if (depth == 0 && c == '(') {
            return false;
        }
        depth += c == '<' || c == '[' ? 1 : 0;
        depth -= (c == '>' && name[i - (i > 0 ? 1 : 0)] != '-') || c == ']' ? 1 : 0;
    }
    return false;
}

/// True if \p rest is a call of \p function, with or without an ABI tag.
bool is_call_of(std::string_view rest, std::string_view function) noexcept {
    return rest.starts_with(function) &&
           (rest.substr(function.size()).starts_with('(') || rest.substr(function.size()).starts_with("[abi:"));
}

}  // namespace

#if defined(PMR_DEBUG_HAVE_DEMANGLE_CALLBACK) && PMR_DEBUG_HAVE_DEMANGLE_CALLBACK
const char* demangle(const char* name, std::span<char> buffer) noexcept {
    const std::string_view text(name);
    if (!text.starts_with("_Z") || buffer.size() < 2 || text.size() > longest_name()) {
        return name;
    }
    output o{buffer};
    if (__gcclibcxx_demangle_callback(name, append, &o) != 0 || o.length == 0) {
        return name;
    }
    buffer[o.length] = '\0';
    return buffer.data();
}
#else
const char* demangle(const char* name, std::span<char>) noexcept {
    return name;
}
#endif

bool is_library_function(std::string_view name) noexcept {
    for (const std::string_view prefix : {"non-virtual thunk to ", "virtual thunk to "}) {
        if (name.starts_with(prefix)) {
            name.remove_prefix(prefix.size());
        }
    }
    name.remove_prefix(name_start(name));
    if (const std::string_view standard = within_std(name); !standard.empty()) {
        constexpr std::string_view resource = "pmr::memory_resource::";
        const std::string_view member =
            standard.starts_with(resource) ? standard.substr(resource.size()) : std::string_view();
        return is_call_of(member, "allocate") || is_call_of(member, "deallocate");
    }
    return name.starts_with("pmr_debug::") || name == "pmr_debug_call_on_stack" ||
           // not demangled
           name.starts_with("_ZN9pmr_debug") || name.starts_with("_ZNK9pmr_debug") ||
           name.starts_with("_ZThn8_N9pmr_debug") || name.starts_with("_ZNSt3pmr15memory_resource8allocateE") ||
           name.starts_with("_ZNSt3pmr15memory_resource10deallocateE") ||
           name.starts_with("_ZNSt3__13pmr15memory_resource8allocate") ||
           name.starts_with("_ZNSt3__13pmr15memory_resource10deallocate");
}

bool is_standard_internal(std::string_view name) noexcept {
    if (name.starts_with("_Z")) {  // the demangler refused it, as GCC 12's does some of std's own
        return is_library_symbol(name);
    }
    name.remove_prefix(name_start(name));
    if (name.starts_with("__gnu_cxx::")) {
        return true;
    }
    const std::string_view standard = within_std(name);
    if (standard.starts_with("pmr::polymorphic_allocator<")) {
        return !has_part(standard, "::new_object") && !has_part(standard, "::delete_object");
    }
    // libstdc++'s members begin with _M_, libc++'s with two underscores. A name that begins with an underscore is the
    // library's own as a whole.
    return standard.starts_with("allocator_traits<") || standard.starts_with('_') || has_part(standard, "::_M_") ||
           has_part(standard, "::__");
}

const char* source_path(const char* file) noexcept {
    const char* const joint = file != nullptr ? std::strstr(file, "//") : nullptr;
    // Somebody may have written two slashes: then the file is there, as long as the sources are.
    return joint == nullptr || joint == file || ::access(file, F_OK) == 0 ? file : joint + 1;
}

}  // namespace pmr_debug::stack
