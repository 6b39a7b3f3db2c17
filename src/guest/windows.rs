//! The answer file of Windows' Setup, as Microsoft's reference of unattended Setup describes it ("Unattended Windows Setup
//! Reference", components and configuration passes). Setup looks for `autounattend.xml` in the top folder of every CD-ROM
//! ("Windows Setup Automation Overview", implicit answer file search order). What it is not told, it asks a person.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::types::xml_escape as e;

/// The name that Setup looks for.
pub const ANSWER_FILE: &str = "autounattend.xml";

/// The label of its CD-ROM, which is for people.
pub const LABEL: &str = "GPUVM";

/// What Setup is told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Windows {
    /// The computer's name: at most 15 characters.
    pub computer: String,
    /// An administrator.
    pub account: Option<Account>,
    /// The edition by its name on the medium.
    pub edition: Option<String>,
    /// A person accepts the license terms.
    pub accept_license: bool,
    /// Language, formats and keyboard.
    pub language: Option<String>,
    /// The time zone by Windows' name.
    pub time_zone: Option<String>,
    /// Remote Desktop is on.
    pub remote_desktop: bool,
    /// Its only disk was made blank for it: it may be partitioned, if it is blank still.
    pub own_disk: bool,
}

/// A user with a password.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Account {
    /// The name.
    pub name: String,
    /// The file of the host's with the password.
    pub password_file: PathBuf,
}

/// The password in a file: its one line. Not a word of it is in an error.
pub fn password_in(text: &str) -> Result<&str, &'static str> {
    let line = text.strip_suffix('\n').unwrap_or(text);
    let line = line.strip_suffix('\r').unwrap_or(line);
    match line {
        "" => Err("it is empty, and nobody gets an empty password"),
        line if line.chars().any(char::is_control) => Err("a password is one line of text"),
        // PWLEN in Windows' lmcons.h.
        line if line.encode_utf16().count() > 256 => Err("a password has at most 256 characters"),
        line => Ok(line),
    }
}

/// A name of a computer's that is made of a VM's: NetBIOS has 15 characters for it, and it is no user's.
pub fn computer_name(vm: &str, user: Option<&str>) -> String {
    let letters = vm.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' });
    let name: String = letters.take(15).collect();
    let name = name.trim_matches('-');
    let number = name.chars().all(|c| c.is_ascii_digit());
    match number || user.is_some_and(|user| user.eq_ignore_ascii_case(name)) {
        true => format!("{}-vm", name.get(..12).unwrap_or(name)),
        false => name.to_owned(),
    }
}

/// Drives that the medium with drivers may be in: Setup gives the letters.
const LETTERS: [char; 5] = ['D', 'E', 'F', 'G', 'H'];

/// Of virtio-win's CD-ROM: drivers of disks, and of network cards.
const DRIVERS: [&str; 2] = [r"amd64\w11", r"NetKVM\w11\amd64"];

/// Partitions as Microsoft has them for UEFI ("UEFI/GPT-based hard drive partitions"). diskpart stops at the first command
/// that fails, and `CONVERT GPT` fails on a disk that has any partition: so none is ever lost, in place of `CLEAN` or the
/// answer file's own `WillWipeDisk`, which would take a Windows away that does not boot and is to be mended.
const PARTITIONS: &str = "cmd.exe /c \">X:\\gpuvm.txt (echo SELECT DISK=0&echo CONVERT GPT&echo CREATE PARTITION EFI \
                          SIZE=300&echo FORMAT QUICK FS=FAT32&echo CREATE PARTITION MSR SIZE=16&echo CREATE PARTITION \
                          PRIMARY&echo FORMAT QUICK FS=NTFS)\"";
const PARTITION: &str = "cmd.exe /c \"diskpart.exe /s X:\\gpuvm.txt || (echo The disk is not blank: it stays as it is.&echo \
                         To mend a Windows, take the windows part out of the manifest.&pause&wpeutil.exe \
                         shutdown&pause)\"";

/// The partition that Windows goes to.
const INSTALL_TO: &str = "<InstallTo><DiskID>0</DiskID><PartitionID>3</PartitionID></InstallTo>";

/// Drivers, and the agent that tells the host of addresses and shuts down when asked.
const GUEST_TOOLS: &str = "cmd.exe /c \"for %d in (D E F G H) do if exist %d:\\virtio-win-guest-tools.exe start /wait \
                           %d:\\virtio-win-guest-tools.exe /install /quiet /norestart\"";

/// One component of a pass.
fn component(name: &str, inside: &str) -> String {
    format!(
        "    <component name=\"{name}\" processorArchitecture=\"amd64\" publicKeyToken=\"31bf3856ad364e35\" \
         language=\"neutral\" versionScope=\"nonSxS\">\n{inside}    </component>\n"
    )
}

fn line(inside: &str) -> String {
    format!("      {inside}\n")
}

fn run(element: &str, order: usize, word: &str, command: &str) -> String {
    line(&format!("<{element} wcm:action=\"add\"><Order>{order}</Order><{word}>{}</{word}></{element}>", e(command)))
}

impl Windows {
    /// The answer file. Whoever has an account has a password.
    pub fn answer_file(&self, password: Option<&str>) -> String {
        let passes = [
            ("windowsPE", [self.languages(true), drivers(), self.setup()].concat()),
            ("specialize", self.specialize()),
            ("oobeSystem", [self.languages(false), self.first_boot(password)].concat()),
        ];
        let mut all = String::from(
            "<?xml version=\"1.0\" encoding=\"utf-8\"?>\n<unattend xmlns=\"urn:schemas-microsoft-com:unattend\" \
             xmlns:wcm=\"http://schemas.microsoft.com/WMIConfig/2002/State\">\n",
        );
        for (pass, components) in passes {
            all += &format!("  <settings pass=\"{pass}\">\n{components}  </settings>\n");
        }
        all + "</unattend>\n"
    }

    fn languages(&self, setup: bool) -> String {
        let Some(language) = &self.language else { return String::new() };
        let mut inside = String::new();
        if setup {
            inside += &line(&format!("<SetupUILanguage><UILanguage>{}</UILanguage></SetupUILanguage>", e(language)));
        }
        for word in ["InputLocale", "SystemLocale", "UILanguage", "UserLocale"] {
            inside += &line(&format!("<{word}>{}</{word}>", e(language)));
        }
        component(
            if setup { "Microsoft-Windows-International-Core-WinPE" } else { "Microsoft-Windows-International-Core" },
            &inside,
        )
    }

    fn setup(&self) -> String {
        let mut inside = String::new();
        if self.own_disk {
            let command = |order, what| run("RunSynchronousCommand", order, "Path", what);
            inside += &line(&format!(
                "<RunSynchronous>\n{}{}      </RunSynchronous>",
                command(1, PARTITIONS),
                command(2, PARTITION)
            ));
        }
        let from = self.edition.as_ref().map(|edition| {
            format!(
                "<InstallFrom><MetaData wcm:action=\"add\"><Key>/IMAGE/NAME</Key><Value>{}</Value></MetaData></InstallFrom>",
                e(edition)
            )
        });
        let to = self.own_disk.then_some(INSTALL_TO);
        if from.is_some() || to.is_some() {
            let (from, to) = (from.unwrap_or_default(), to.unwrap_or_default());
            inside += &line(&format!("<ImageInstall><OSImage>{from}{to}</OSImage></ImageInstall>"));
        }
        // The license is the person's: without an edition, its page is where one is chosen.
        let shown = if self.edition.is_some() { "OnError" } else { "Always" };
        let accepted = if self.accept_license { "<AcceptEula>true</AcceptEula>" } else { "" };
        inside +=
            &line(&format!("<UserData>{accepted}<ProductKey><WillShowUI>{shown}</WillShowUI></ProductKey></UserData>"));
        component("Microsoft-Windows-Setup", &inside)
    }

    fn specialize(&self) -> String {
        let mut inside = line(&format!("<ComputerName>{}</ComputerName>", e(&self.computer)));
        if let Some(zone) = &self.time_zone {
            inside += &line(&format!("<TimeZone>{}</TimeZone>", e(zone)));
        }
        let mut all = component("Microsoft-Windows-Shell-Setup", &inside);
        if self.remote_desktop {
            all += &component(
                "Microsoft-Windows-TerminalServices-LocalSessionManager",
                &line("<fDenyTSConnections>false</fDenyTSConnections>"),
            );
            // The group's name is another in each language; this names it in all of them.
            all += &component(
                "Networking-MPSSVC-Svc",
                &line(
                    "<FirewallGroups><FirewallGroup wcm:action=\"add\" wcm:keyValue=\"RemoteDesktop\"><Active>true</Active>\
                     <Group>@FirewallAPI.dll,-28752</Group><Profile>all</Profile></FirewallGroup></FirewallGroups>",
                ),
            );
        }
        all
    }

    fn first_boot(&self, password: Option<&str>) -> String {
        let mut inside = String::new();
        let mut pages = String::new();
        if self.accept_license {
            pages += "<HideEULAPage>true</HideEULAPage>";
        }
        if let (Some(account), Some(password)) = (&self.account, password) {
            pages += "<HideOnlineAccountScreens>true</HideOnlineAccountScreens>\
                      <HideWirelessSetupInOOBE>true</HideWirelessSetupInOOBE><ProtectYourPC>3</ProtectYourPC>";
            inside += &line(&format!(
                "<UserAccounts><LocalAccounts><LocalAccount wcm:action=\"add\"><Name>{}</Name><Group>Administrators</Group>\
                 <Password><Value>{}</Value><PlainText>true</PlainText></Password></LocalAccount></LocalAccounts></UserAccounts>",
                e(&account.name),
                e(password)
            ));
        }
        if !pages.is_empty() {
            inside += &line(&format!("<OOBE>{pages}</OOBE>"));
        }
        let tools = run("SynchronousCommand", 1, "CommandLine", GUEST_TOOLS);
        inside += &line(&format!("<FirstLogonCommands>\n{tools}      </FirstLogonCommands>"));
        component("Microsoft-Windows-Shell-Setup", &inside)
    }
}

fn drivers() -> String {
    let paths = LETTERS.into_iter().flat_map(|letter| DRIVERS.map(|path| format!("{letter}:\\{path}")));
    let one = |(n, path): (usize, String)| {
        line(&format!(
            "<PathAndCredentials wcm:action=\"add\" wcm:keyValue=\"{n}\"><Path>{}</Path></PathAndCredentials>",
            e(&path)
        ))
    };
    let all: String = (1..).zip(paths).map(one).collect();
    component("Microsoft-Windows-PnpCustomizationsWinPE", &line(&format!("<DriverPaths>\n{all}      </DriverPaths>")))
}

#[cfg(test)]
pub(crate) mod tests {
    use roxmltree::{Document, Node};

    use super::*;

    pub(crate) fn windows() -> Windows {
        Windows {
            computer: "win".to_owned(),
            account: Some(Account { name: "alice".to_owned(), password_file: "/root/alice.password".into() }),
            edition: Some("Windows 11 Pro".to_owned()),
            accept_license: true,
            language: Some("de-DE".to_owned()),
            time_zone: Some("W. Europe Standard Time".to_owned()),
            remote_desktop: true,
            own_disk: true,
        }
    }

    /// Passes in which Microsoft's reference has each component that is used here.
    const VALID: [(&str, &str); 8] = [
        ("windowsPE", "Microsoft-Windows-International-Core-WinPE"),
        ("windowsPE", "Microsoft-Windows-PnpCustomizationsWinPE"),
        ("windowsPE", "Microsoft-Windows-Setup"),
        ("specialize", "Microsoft-Windows-Shell-Setup"),
        ("specialize", "Microsoft-Windows-TerminalServices-LocalSessionManager"),
        ("specialize", "Networking-MPSSVC-Svc"),
        ("oobeSystem", "Microsoft-Windows-International-Core"),
        ("oobeSystem", "Microsoft-Windows-Shell-Setup"),
    ];

    const NAMESPACE: &str = "urn:schemas-microsoft-com:unattend";

    fn parts(doc: &Document<'_>) -> Vec<(String, String)> {
        let root = doc.root_element();
        assert_eq!((root.tag_name().name(), root.tag_name().namespace()), ("unattend", Some(NAMESPACE)));
        let elements =
            |node: Node<'_, '_>| node.children().filter(Node::is_element).map(|n| n.id()).collect::<Vec<_>>();
        let mut all = Vec::new();
        for settings in elements(root).into_iter().map(|id| doc.get_node(id).unwrap()) {
            for component in elements(settings).into_iter().map(|id| doc.get_node(id).unwrap()) {
                assert_eq!(component.attribute("processorArchitecture"), Some("amd64"));
                assert_eq!(component.attribute("publicKeyToken"), Some("31bf3856ad364e35"));
                let [pass, name] =
                    [settings.attribute("pass"), component.attribute("name")].map(|a| a.unwrap().to_owned());
                all.push((pass, name));
            }
        }
        all
    }

    fn text(doc: &Document<'_>, path: &[&str]) -> Option<String> {
        let ends = |node: &Node<'_, '_>| {
            let mut names: Vec<&str> = node.ancestors().filter(Node::is_element).map(|n| n.tag_name().name()).collect();
            names.reverse();
            names.ends_with(path)
        };
        doc.descendants().filter(Node::is_element).find(ends).map(|n| n.text().unwrap_or_default().to_owned())
    }

    #[test]
    fn every_part_is_in_a_pass_that_has_it() {
        let xml = windows().answer_file(Some("<a&b> \"'c"));
        let doc = Document::parse(&xml).unwrap();
        let want: Vec<_> = VALID.iter().map(|(p, n)| ((*p).to_owned(), (*n).to_owned())).collect();
        assert_eq!(parts(&doc), want);
        let of = |path: &[&str]| text(&doc, path);
        assert_eq!(of(&["LocalAccount", "Name"]).as_deref(), Some("alice"));
        assert_eq!(of(&["LocalAccount", "Password", "Value"]).as_deref(), Some("<a&b> \"'c"));
        assert_eq!(of(&["InstallFrom", "MetaData", "Value"]).as_deref(), Some("Windows 11 Pro"));
        assert_eq!(of(&["UserData", "AcceptEula"]).as_deref(), Some("true"));
        assert_eq!(of(&["ComputerName"]).as_deref(), Some("win"));
        assert_eq!(of(&["fDenyTSConnections"]).as_deref(), Some("false"));
        // Path of RunSynchronousCommand has at most 259 characters, CommandLine of SynchronousCommand 1024.
        for (name, most) in [("Path", 259), ("CommandLine", 1024)] {
            for node in doc.descendants().filter(|n| n.has_tag_name((NAMESPACE, name))) {
                assert!(node.text().unwrap().len() <= most, "{:?}", node.text());
            }
        }
    }

    #[test]
    fn what_nobody_said_is_asked_and_no_disk_is_touched() {
        let bare = Windows {
            account: None,
            edition: None,
            accept_license: false,
            language: None,
            time_zone: None,
            remote_desktop: false,
            own_disk: false,
            ..windows()
        };
        let xml = bare.answer_file(None);
        let doc = Document::parse(&xml).unwrap();
        for absent in
            ["AcceptEula", "HideEULAPage", "UserAccounts", "InstallTo", "diskpart", "FirewallGroup", "UILanguage"]
        {
            assert!(!xml.contains(absent), "{absent}: {xml}");
        }
        assert_eq!(text(&doc, &["ProductKey", "WillShowUI"]).as_deref(), Some("Always"));
    }

    #[test]
    fn no_disk_with_anything_on_it_is_wiped() {
        let xml = windows().answer_file(Some("x")).to_ascii_uppercase();
        for word in ["WILLWIPEDISK", "CLEAN", "DELETE", "NOERR", "OVERRIDE"] {
            assert!(!xml.contains(word), "{word}");
        }
        let convert = PARTITIONS.find("CONVERT GPT").unwrap();
        assert!(PARTITIONS.find("FORMAT").unwrap() > convert && PARTITIONS.find("CREATE").unwrap() > convert);
    }

    #[test]
    fn a_password_is_one_line_and_a_computer_has_a_name_of_its_own() {
        assert_eq!(password_in("a b\r\n"), Ok("a b"));
        assert!(password_in("\n").is_err() && password_in("a\nb\n").is_err() && password_in(&"x".repeat(300)).is_err());
        assert_eq!(computer_name("my_long.name-of-a-vm", None), "my-long-name-of");
        assert_eq!(computer_name("alice", Some("alice")), "alice-vm");
        assert_eq!(computer_name("1234", None), "1234-vm");
    }
}
